// Uploads: the file goes to the server as it is, with progress; a file that is dropped is a file that was chosen.

import { announce, bytes, checked, complain, refresh, sentence, tell } from "./net.js";

export function forms(main) {
  for (const form of main.querySelectorAll("form[data-upload]")) {
    const { file, name } = form.elements;
    file.addEventListener("change", () => suggest(file, name));
    dropping(form, file, name);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (checked(form)) upload(form, file.files[0], name.value);
    });
  }
}

/** A name from that of the file, where none is given yet. */
function suggest(file, name) {
  const [chosen] = file.files;
  if (!chosen || name.value) return;
  const stem = chosen.name.replace(/\.[^.]*$/, "");
  name.value = stem.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 128);
}

function dropping(form, file, name) {
  const zone = form.querySelector(".drop");
  const over = (event) => {
    event.preventDefault();
    zone.classList.toggle("over", event.type === "dragover");
  };
  for (const kind of ["dragover", "dragleave", "drop"]) form.addEventListener(kind, over);
  form.addEventListener("drop", (event) => {
    if (event.dataTransfer.files.length === 0) return;
    file.files = event.dataTransfer.files;
    suggest(file, name);
  });
}

function upload(form, file, name) {
  const limit = Number(form.dataset.limit);
  if (file.size > limit) {
    complain(form, `The file has ${bytes(file.size)}; the server takes up to ${bytes(limit)}.`);
    return;
  }
  const bar = form.querySelector("progress");
  const button = form.querySelector("[type=submit]");
  // fetch cannot tell how much was sent.
  const request = new XMLHttpRequest();
  const ended = (text) => {
    bar.hidden = true;
    button.disabled = false;
    tell(form, "");
    complain(form, text);
  };
  request.upload.addEventListener("progress", (event) => {
    bar.value = (100 * event.loaded) / Math.max(event.total, 1);
    tell(form, event.loaded < event.total ? `${bytes(event.loaded)} of ${bytes(event.total)}` : "The server looks into it …");
  });
  request.addEventListener("error", () => ended("The connection was lost before the file was there."));
  request.addEventListener("load", async () => {
    if (request.status >= 300) return ended(sentence(request.status, request.responseText));
    const kept = JSON.parse(request.responseText);
    const says = request.status === 201 ? "is uploaded" : "was there already";
    await refresh();
    announce(`${kept.name}@${kept.version} ${says}.`);
    const again = document.querySelector(`form[data-upload="${form.dataset.upload}"]`);
    if (again) tell(again, `${kept.name}@${kept.version} ${says}.`);
  });
  bar.hidden = false;
  bar.value = 0;
  button.disabled = true;
  tell(form, "Begins …");
  request.open("PUT", form.dataset.upload + encodeURIComponent(name));
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.send(file);
}
