// What every page has: times that stay true, commands to copy, buttons that ask first. The rest is in its own files.

import { ask } from "./ask.js";
import { copyButton } from "./net.js";
import { find } from "./docs.js";
import { forms as uploads } from "./upload.js";
import { followed, forms as jobs, live } from "./jobs.js";
import { figures, forms as endpoints } from "./endpoint.js";
import { forms as rollout } from "./rollout.js";
import { boxes } from "./tryit.js";

const PARTS = [commands, acts, uploads, jobs, live, followed, endpoints, rollout, figures, boxes, find];

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
