// Jobs: the form that starts one, the page that follows one by its events, the lists that follow many.

import { announce, bytes, checked, complain, el, pause, percent, refresh, Refusal, seconds, send, tell } from "./net.js";

export function forms(main) {
  for (const form of main.querySelectorAll("form[data-job]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      ask(form, false);
    });
    form.querySelector("[data-dry]").addEventListener("click", () => ask(form, true));
  }
}

/** What the form asks for, as the body of a request. Throws a sentence where the recipe is no JSON. */
function wanted(form) {
  const value = (name) => form.elements[name].value.trim();
  const recipe = {};
  for (const field of ["scheme", "ranges", "target"]) {
    if (value(field)) recipe[field] = value(field);
  }
  const gate = {};
  for (const field of ["max_drop", "min_agreement"]) {
    // The form speaks of points and per cent, the recipe of shares.
    if (value(field)) gate[field] = Number((Number(value(field)) / 100).toPrecision(12));
  }
  if (Object.keys(gate).length) recipe.gate = gate;
  if (value("recipe")) {
    let more;
    try {
      more = JSON.parse(value("recipe"));
    } catch (error) {
      throw new Refusal(0, `Recipe: not JSON (${error.message})`, form.elements.recipe);
    }
    if (more === null || typeof more !== "object" || Array.isArray(more)) {
      throw new Refusal(0, "Recipe: a JSON object is needed.", form.elements.recipe);
    }
    if (recipe.gate && more.gate && typeof more.gate === "object") more.gate = { ...recipe.gate, ...more.gate };
    Object.assign(recipe, more);
  }
  const job = { kind: "quantize", model: value("model"), recipe };
  // A dataset, or an earlier job whose statistics are used.
  const [, of] = value("calibration").match(/^of:(.*)$/) ?? [];
  if (of) job.calibration_of = of;
  else job.calibration = value("calibration");
  if (value("evaluation")) job.evaluation = value("evaluation");
  if (value("endpoint")) job.endpoint = value("endpoint");
  if (form.elements.keep.checked) job.keep = true;
  return job;
}

async function ask(form, dry) {
  if (!checked(form)) return;
  const buttons = form.querySelectorAll("button");
  for (const button of buttons) button.disabled = true;
  tell(form, dry ? "Predicting …" : "Starting …");
  try {
    const job = wanted(form);
    if (dry) job.dry_run = true;
    const answer = await send("POST", "/v1/jobs", {
      body: JSON.stringify(job),
      headers: { "Content-Type": "application/json" },
    });
    const made = await answer.json();
    if (dry) predicted(form, made);
    else location.assign(`/jobs/${made.id}`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    complain(form, error.message, error.field);
  } finally {
    for (const button of buttons) button.disabled = false;
    tell(form, "");
  }
}

/** What a job would do, in a few lines. */
function predicted(form, dry) {
  const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
  const total = dry.seconds && Object.values(dry.seconds).reduce((sum, s) => sum + (typeof s === "number" ? s : 0), 0);
  const list = el(
    "dl",
    { class: "facts" },
    fact("Nodes on integers", `${dry.coverage.integer}, ${dry.coverage.float} in float`),
    fact("Size", `${bytes(dry.artifact_bytes)} (${(dry.size_ratio * 100).toFixed(0)} %)`),
    fact("Work on integers", dry.integer_share == null ? "not known" : percent(dry.integer_share)),
    fact("Time", total == null ? "not known" : `about ${seconds(total)}`),
    fact("Memory", dry.memory_bytes == null ? "not known" : `about ${bytes(dry.memory_bytes)}`),
  );
  const place = form.querySelector("[data-predicted]");
  place.replaceChildren(el("h2", {}, "A job would do this"), list);
  place.hidden = false;
}

/** The page of a job that has not ended: its events, until the end. */
export function live(main) {
  const panel = main.querySelector("[data-live]");
  if (!panel) return;
  const path = `/v1/jobs/${panel.dataset.live}`;
  const began = {};
  let source = null;
  const on = (event) => {
    if (!panel.isConnected) return source.close();
    const job = JSON.parse(event.data);
    if (!["queued", "running"].includes(job.state)) {
      source.close();
      announce(`The job has ended: ${job.state.replace("_", " ")}.`);
      return refresh();
    }
    show(main, panel, job, began);
  };
  // A tab that nobody sees holds no connection: a browser has six for a server without TLS, and the seventh tab waits.
  const listen = () => {
    source?.close();
    if (!panel.isConnected) return document.removeEventListener("visibilitychange", listen);
    if (document.hidden) return;
    source = new EventSource(`${path}/events`);
    source.addEventListener("progress", on);
    source.addEventListener("state", on);
    source.addEventListener("error", lost);
  };
  const lost = () => {
    panel.querySelector("[data-eta]").textContent = "The server cannot be reached; the page tries again …";
    // After a cut the browser tries again by itself; after an answer that is no stream it does not.
    if (source.readyState === EventSource.CLOSED) setTimeout(back, 2000);
  };
  const back = async () => {
    try {
      await send("GET", path);
      listen();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      // The job is gone, or the key is taken no more: the page says so.
      if ([401, 403, 404].includes(error.status)) return refresh();
      setTimeout(back, 2000);
    }
  };
  document.addEventListener("visibilitychange", listen);
  addEventListener("pagehide", () => source?.close(), { once: true });
  listen();
}

function show(main, panel, job, began) {
  const word = main.querySelector("[data-state] .chip");
  word.textContent = job.state;
  word.className = `chip ${job.state === "running" ? "busy" : "wait"}`;
  const progress = job.progress;
  if (!progress) return;
  let passed = true;
  for (const step of panel.querySelectorAll("[data-step]")) {
    const now = step.dataset.step === progress.phase;
    if (now && !step.classList.contains("now")) announce(`Phase: ${progress.phase}`);
    if (now) passed = false;
    step.className = now ? "now" : passed ? "done" : "";
    if (now) step.setAttribute("aria-current", "step");
    else step.removeAttribute("aria-current");
  }
  const bar = panel.querySelector("progress");
  bar.max = Math.max(progress.total, 1);
  bar.value = progress.done;
  panel.querySelector("[data-count]").textContent = progress.total ? `${progress.done} of ${progress.total}` : "…";
  panel.querySelector("[data-eta]").textContent = eta(progress, began);
}

/** How long the phase will still take, at the pace it has had since this page has seen it. */
function eta(progress, began) {
  began[progress.phase] ??= { at: performance.now(), done: progress.done };
  const first = began[progress.phase];
  const spent = (performance.now() - first.at) / 1000;
  const done = progress.done - first.done;
  if (spent < 1 || done <= 0 || progress.done >= progress.total) return "";
  return `about ${seconds(((progress.total - progress.done) * spent) / done)} left in this phase`;
}

/** Rows of jobs that have not ended: looked at every two seconds, until all have. */
export async function followed(main) {
  const rows = [...main.querySelectorAll("[data-follow]")];
  if (rows.length === 0) return;
  for (;;) {
    await pause(2000);
    if (!rows[0].isConnected) return;
    if (document.hidden) continue;
    try {
      for (const row of rows) {
        const job = await (await send("GET", `/v1/jobs/${row.dataset.follow}`)).json();
        if (!["queued", "running"].includes(job.state)) {
          announce(`A job has ended: ${job.state.replace("_", " ")}.`);
          return refresh();
        }
        const bar = row.querySelector("progress");
        if (!bar && job.state === "running") return refresh();
        if (bar && job.progress) {
          bar.max = Math.max(job.progress.total, 1);
          bar.value = job.progress.done;
          row.querySelector("[data-phase]").textContent = job.progress.phase;
        }
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status === 404) return refresh();
    }
  }
}
