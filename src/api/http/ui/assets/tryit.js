// The box that sends a request: inputs by their metadata, the answer as a table, and the same as a command.

import { checked, complain, copyButton, el, Refusal, seconds, sentence, tell } from "./net.js";

const WHOLE = /^(U?INT|BOOL)/;
const VALUES_MAX = 4e6;
const SHOWN = 10;

export function boxes(main) {
  for (const form of main.querySelectorAll("form[data-try]")) {
    for (const input of form.querySelectorAll("[data-input]")) {
      const fill = input.querySelector("[data-fill]");
      const follow = () => {
        for (const field of input.querySelectorAll("[data-for]")) field.hidden = field.dataset.for !== fill.value;
      };
      fill.addEventListener("change", follow);
      follow();
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (checked(form)) ask(form);
    });
    command(form, null);
  }
}

/** The body of the request. Throws a Refusal where a field says nothing that can be sent. */
async function body(form) {
  const inputs = [];
  for (const input of form.querySelectorAll("[data-input]")) {
    const { input: name, dtype } = input.dataset;
    const shape = input.dataset.shape.split(",").filter(Boolean).map(Number);
    for (const field of input.querySelectorAll("[data-dim]")) shape[field.dataset.dim] = Number(field.value);
    const count = shape.reduce((a, b) => a * b, 1);
    if (count > VALUES_MAX) throw new Refusal(0, `${name}: ${count} values are too many for this box; use curl or a client.`);
    inputs.push({ name, shape, datatype: dtype, data: await values(input, shape, count, dtype) });
  }
  const request = { inputs };
  const precision = form.elements.precision?.value;
  if (precision && form.elements.precision.selectedIndex > 0) request.parameters = { precision };
  return request;
}

async function values(input, shape, count, dtype) {
  const name = input.dataset.input;
  switch (input.querySelector("[data-fill]").value) {
    case "zeros":
      return Array(count).fill(dtype === "BOOL" ? false : 0);
    case "json": {
      try {
        return JSON.parse(input.querySelector("[data-json]").value);
      } catch (error) {
        throw new Refusal(0, `${name}: not JSON (${error.message})`, input.querySelector("[data-json]"));
      }
    }
    case "picture":
      return picture(input, shape);
    default:
      if (dtype === "BOOL") return Array.from({ length: count }, () => Math.random() < 0.5);
      // Codes and indices: what every vocabulary has.
      if (WHOLE.test(dtype)) return Array.from({ length: count }, () => Math.floor(Math.random() * 2));
      return Array.from({ length: count }, () => Number((Math.random() * 2 - 1).toFixed(4)));
  }
}

/** The pixels of a picture, scaled to the shape, 0 to 1, channels first or last as the shape has them. */
async function picture(input, shape) {
  const [file] = input.querySelector("[data-picture]").files;
  if (!file) throw new Refusal(0, `${input.dataset.input}: choose a picture first.`, input.querySelector("[data-picture]"));
  const first = shape[1] === 1 || shape[1] === 3;
  const [channels, height, width] = first ? shape.slice(1) : [shape[3], shape[1], shape[2]];
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
  } catch {
    throw new Refusal(0, `${file.name} is no picture that this browser reads.`);
  }
  const canvas = el("canvas", { width, height }).getContext("2d");
  canvas.drawImage(bitmap, 0, 0);
  const pixels = canvas.getImageData(0, 0, width, height).data;
  const grey = (at) => 0.299 * pixels[at] + 0.587 * pixels[at + 1] + 0.114 * pixels[at + 2];
  const value = (at, c) => Number(((channels === 1 ? grey(at) : pixels[at + c]) / 255).toFixed(4));
  const data = [];
  const area = width * height;
  if (first) for (let c = 0; c < channels; c++) for (let i = 0; i < area; i++) data.push(value(4 * i, c));
  else for (let i = 0; i < area; i++) for (let c = 0; c < channels; c++) data.push(value(4 * i, c));
  return Array.from({ length: shape[0] }, () => data).flat();
}

async function ask(form) {
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  tell(form, "Sent …");
  try {
    const request = await body(form);
    command(form, request);
    const text = JSON.stringify(request);
    const began = performance.now();
    const answer = await fetch(form.dataset.try, { method: "POST", body: text, headers: { "Content-Type": "application/json" } });
    const got = await answer.text();
    const spent = (performance.now() - began) / 1000;
    tell(form, `${answer.status} ${answer.ok ? "OK" : ""} in ${seconds(spent)}`);
    if (!answer.ok) throw new Refusal(answer.status, sentence(answer.status, got));
    show(form, JSON.parse(got), answer.headers.get("server-timing") ?? "");
  } catch (error) {
    const known = error instanceof Refusal;
    complain(form, known ? error.message : `The request could not be sent: ${error.message}`, error.field);
    if (!known || error.status === 0) tell(form, "");
    form.querySelector("[data-answer]").hidden = true;
  } finally {
    button.disabled = false;
  }
}

function show(form, answer, timing) {
  const place = form.querySelector("[data-answer]");
  const parts = [timings(timing)];
  for (const output of answer.outputs) parts.push(table(output));
  place.replaceChildren(el("p", { class: "dim" }, `Version ${answer.model_version} of ${answer.model_name}`), ...parts);
  place.hidden = false;
}

/** `Server-Timing`, in words. */
function timings(header) {
  const list = el("p", { class: "timings" });
  for (const entry of header.split(",")) {
    const [, name, ms] = entry.match(/([a-z]+);dur=([0-9.]+)/) ?? [];
    if (name) list.append(el("span", {}, el("span", { class: "dim" }, `${name} `), seconds(Number(ms) / 1000)));
  }
  return list;
}

/** An output: its largest values first where it looks like scores of classes, else its first values. */
function table(output) {
  const { name, datatype, shape, data } = output;
  const row = shape.length === 2 ? data.slice(0, shape[1]) : data;
  const numbers = row.every((v) => typeof v === "number");
  const scores = shape.length === 2 && shape[1] > 1 && /^FP/.test(datatype) && numbers;
  let entries = row.map((value, index) => ({ index, value }));
  if (scores) entries.sort((a, b) => b.value - a.value);
  const all = entries.length;
  entries = entries.slice(0, SHOWN);
  const share = scores ? shares(row) : null;
  const head = el("tr", {}, el("th", { scope: "col" }, scores ? "Class" : "Index"), el("th", { scope: "col", class: "r" }, "Value"));
  if (share) head.append(el("th", { scope: "col" }, share.title));
  const body = el("tbody");
  for (const { index, value } of entries) {
    const line = el("tr", {}, el("td", {}, String(index)), el("td", { class: "r" }, value == null ? "not finite" : String(typeof value === "number" ? Number(value.toPrecision(6)) : value)));
    if (share) {
      const part = share.of(value);
      line.append(el("td", {}, el("progress", { max: 1, value: part, "aria-label": `Class ${index}` }), el("span", { class: "num" }, ` ${(part * 100).toFixed(1)} %`)));
    }
    body.append(line);
  }
  const more = [];
  if (scores && shape[0] > 1) more.push(`the first of ${shape[0]} samples`);
  if (all > SHOWN) more.push(`${SHOWN} of ${all} values`);
  return el(
    "div",
    { class: "output" },
    el("h3", {}, el("code", {}, name), " ", el("span", { class: "dim" }, [`${datatype} ${shape.join(" × ")}`, ...more].join(", "))),
    el("div", { class: "wrap" }, el("table", {}, el("thead", {}, head), body)),
  );
}

/** Values that add up to 1 are shares already; others become shares by softmax. */
function shares(row) {
  const sum = row.reduce((a, b) => a + b, 0);
  if (Math.abs(sum - 1) < 1e-3 && row.every((v) => v >= 0)) return { title: "Share", of: (v) => v };
  const most = Math.max(...row);
  const total = row.reduce((a, v) => a + Math.exp(v - most), 0);
  return { title: "Softmax", of: (v) => Math.exp(v - most) / total };
}

/** The command. What is shown is cut where it is long; what is copied is whole. */
function command(form, request) {
  const code = form.querySelector("[data-command]");
  const line = (json) => `curl ${location.origin}${form.dataset.try} -d '${json}'`;
  if (!request) {
    code.textContent = "Send a request to see it here.";
    return;
  }
  code.dataset.whole = line(JSON.stringify(request));
  const brief = JSON.stringify(request).replace(/"data":\[((?:[^,\]]*,){6})[^\]]{40,}\]/g, (_, start) => `"data":[${start} …]`);
  code.textContent = line(brief);
  if (!code.closest(".code").querySelector(".copy")) copyButton(code);
}
