// The page of the API: a field that leaves only the operations with the words typed.

export function find(main) {
  const field = main.querySelector("[data-find]");
  if (!field) return;
  const told = main.querySelector("[data-found]");
  const operations = [...main.querySelectorAll("article.op")].map((article) => ({
    parts: [article, main.querySelector(`.toc a[href="#${article.id}"]`).parentElement],
    head: [...article.querySelectorAll(":scope > h3, :scope > p")].map((e) => e.textContent).join(" ").toLowerCase(),
    text: article.textContent.toLowerCase(),
  }));
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const having = (where) => operations.filter((operation) => words.every((word) => operation[where].includes(word)));
    const heads = having("head");
    // A word that no path and no summary has may be a field of a body.
    const found = heads.length ? heads : having("text");
    for (const operation of operations) for (const part of operation.parts) part.hidden = !found.includes(operation);
    for (const group of main.querySelectorAll(".toc details, .reference section")) {
      group.hidden = !group.querySelector("li:not([hidden]), article:not([hidden])");
    }
    told.textContent = words.length ? `${found.length} of ${operations.length} operations` : "";
  };
  field.addEventListener("input", show);
  field.closest(".find").hidden = false;
  show();
}
