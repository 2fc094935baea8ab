// Requests, refusals, elements, and telling what happens. Text from the server becomes text, never markup.

/** A refusal of the server, with its sentence; or one of the page itself (status 0), of a field perhaps. */
export class Refusal extends Error {
  constructor(status, detail, field = null) {
    super(detail);
    this.status = status;
    this.field = field;
  }
}

/** The sentence of a refusal: `detail` of /v1, `error` of /v2. */
export function sentence(status, text) {
  try {
    const body = JSON.parse(text);
    const said = body.detail ?? body.error;
    if (typeof said === "string") return said;
  } catch {
    // Not JSON: a proxy in between, perhaps.
  }
  return `The server answered ${status}.`;
}

/** Sends a request; gives the answer, or throws a Refusal. */
export async function send(method, path, { body, headers = {} } = {}) {
  let answer;
  try {
    answer = await fetch(path, { method, body, headers });
  } catch {
    throw new Refusal(0, "The server cannot be reached.");
  }
  if (!answer.ok) throw new Refusal(answer.status, sentence(answer.status, await answer.text()));
  return answer;
}

/** An element with attributes and children; strings become text. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, String(value));
  }
  element.append(...children);
  return element;
}

/** Tells it to those who listen to the page. */
export function announce(text) {
  document.getElementById("announce").textContent = text;
}

/** Shows a refusal beside its form, where it is read out; an empty text takes it away. With a field, goes there. */
export function complain(form, text, field = null) {
  const place = form.querySelector(".problem");
  place.id ||= `problem-${[...document.querySelectorAll(".problem")].indexOf(place)}`;
  place.textContent = text;
  place.hidden = !text;
  for (const before of form.querySelectorAll("[aria-invalid]")) {
    before.removeAttribute("aria-invalid");
    describe(before, (ids) => ids.filter((id) => id !== place.id));
  }
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  // What is wrong is read with the field, also when one comes back to it.
  describe(field, (ids) => [place.id, ...ids]);
  field.closest("details")?.setAttribute("open", "");
  field.focus();
}

function describe(field, change) {
  const ids = change((field.getAttribute("aria-describedby") ?? "").split(" ").filter(Boolean));
  if (ids.length) field.setAttribute("aria-describedby", ids.join(" "));
  else field.removeAttribute("aria-describedby");
}

/** Says beside the buttons of a form what goes on. */
export function tell(form, text) {
  form.querySelector("[data-said]").textContent = text;
}

/** Marks the first field that the browser finds wrong, and says why; gives whether there is none. */
export function checked(form) {
  for (const field of form.elements) {
    if (field.willValidate && !field.checkValidity()) {
      const label = field.labels?.[0]?.textContent ?? field.name;
      const why = field.validity.patternMismatch
        ? "letters, digits, dot, dash and underscore, the first a letter or digit."
        : field.validationMessage;
      complain(form, `${label}: ${why}`, field);
      return false;
    }
  }
  complain(form, "");
  return true;
}

/** Takes what the page shows now from the server, without leaving it. */
export async function refresh() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const main = document.getElementById("main");
  const inside = main.contains(document.activeElement);
  main.replaceChildren(...fresh.getElementById("main").childNodes);
  // What had the focus is gone: the keyboard goes on from the top of what came.
  if (inside) main.focus({ preventScroll: true });
  document.dispatchEvent(new CustomEvent("octet:main"));
}

/** Waits. */
export function pause(ms) {
  return new Promise((go) => setTimeout(go, ms));
}

/** A time in words of fitting length. */
export function seconds(s) {
  if (s < 1e-3) return `${(s * 1e6).toFixed(0)} µs`;
  if (s < 1) return `${(s * 1e3).toPrecision(3)} ms`;
  if (s < 90) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

/** A size in words. */
export function bytes(n) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (n >= size) return `${(n / size).toFixed(1)} ${unit}`;
  }
  return `${n} B`;
}

/** A share in per cent. */
export function percent(share) {
  return `${(share * 100).toFixed(2)} %`;
}

/** Adds a button that copies a command: all of it, also where what is shown is cut. */
export function copyButton(code) {
  const button = el("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.dataset.whole ?? code.textContent);
      button.textContent = "Copied";
      announce("Copied");
    } catch {
      // Without https there is no clipboard: the text is marked, so that a key copies it.
      getSelection().selectAllChildren(code);
      button.textContent = "Marked";
      announce("The command is marked: copy it with the keyboard.");
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  code.closest(".code").append(button);
}
