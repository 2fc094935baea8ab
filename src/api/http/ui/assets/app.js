// What every page has: times that stay true, commands to copy, buttons that ask first. The rest is in its own files.

import { copyButton, el, refresh, Refusal, send } from "./net.js";
import { forms as uploads } from "./upload.js";
import { followed, forms as jobs, live } from "./jobs.js";
import { figures, forms as endpoints } from "./endpoint.js";
import { boxes } from "./tryit.js";

const PARTS = [commands, acts, uploads, jobs, live, followed, endpoints, figures, boxes];

/** Puts the address of this server into commands, and a button to copy beside each. */
function commands(main) {
  for (const code of main.querySelectorAll("[data-curl]")) {
    code.textContent = code.textContent.replaceAll("$OCTET", location.origin);
    copyButton(code);
  }
}

/** Buttons that change something ask first. */
function acts(main) {
  for (const button of main.querySelectorAll("[data-act]")) {
    button.addEventListener("click", () => ask(button));
  }
}

function ask(button) {
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

/** Keeps «2 min ago» true. */
function times() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const past = (Date.now() - Date.parse(time.dateTime)) / 1000;
    if (past < 10) time.textContent = "just now";
    else if (past < 60) time.textContent = `${Math.floor(past)} s ago`;
    else if (past < 3600) time.textContent = `${Math.floor(past / 60)} min ago`;
    else if (past < 86400) time.textContent = `${Math.floor(past / 3600)} h ago`;
    else time.textContent = `${Math.floor(past / 86400)} d ago`;
    time.title = new Date(time.dateTime).toLocaleString();
  }
}

function begin() {
  const main = document.getElementById("main");
  for (const part of PARTS) part(main);
  times();
}

// On a phone the navigation is wider than the page.
document.querySelector(".top [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
document.addEventListener("octet:main", begin);
begin();
setInterval(times, 5000);
