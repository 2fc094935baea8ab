// Asks before something is changed: the button says what, and a dialog whether.

import { el, refresh, Refusal, send } from "./net.js";

/** Asks with the question of a button, and sends what the button says. */
export function ask(button) {
  const { act, path, question, then, body, match } = button.dataset;
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const yes = el("button", { type: "button", class: button.className }, button.textContent);
  const no = el("button", { type: "button", class: "button" }, "Not now");
  const dialog = el(
    "dialog",
    { "aria-labelledby": "question" },
    el("p", { id: "question" }, question),
    problem,
    el("div", { class: "row end" }, no, yes),
  );
  no.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (button.isConnected) button.focus();
  });
  yes.addEventListener("click", async () => {
    yes.disabled = true;
    try {
      const headers = match ? { "If-Match": match } : {};
      if (body) headers["Content-Type"] = "application/json";
      await send(act, path, { body, headers });
      dialog.close();
      if (then === location.pathname) await refresh();
      else location.assign(then);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      problem.textContent = error.status === 412 ? "It was changed meanwhile. Load the page again and look at it first." : error.message;
      problem.hidden = false;
      yes.disabled = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  no.focus();
}
