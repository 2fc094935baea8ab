// The page of an endpoint: figures once a second, rates and quantiles from their differences, and forms that change it.

import { bars, lines } from "./charts.js";
import { checked, complain, el, pause, percent, refresh, Refusal, seconds, send, tell } from "./net.js";

// Of versions, oldest first.
const TONES = ["", "one", "two", "three"];
const SPAN = 60;
const WINDOW = 10;
// What clients see, from good to bad.
const OUTCOMES = [
  ["answered", "", ["ok"]],
  ["refused", "two", ["rejected", "deadline"]],
  ["failed", "bad", ["error", "invalid", "cancelled"]],
];

export function forms(main) {
  for (const form of main.querySelectorAll("form[data-serve]")) {
    const body = () => JSON.stringify({ artifact: form.dataset.serve });
    const path = () => `/v1/endpoints/${encodeURIComponent(form.elements.name.value)}`;
    submits(form, path, body, (name) => location.assign(`/endpoints/${name}`));
  }
  for (const form of main.querySelectorAll("form[data-promote]")) {
    submits(form, () => form.dataset.promote, () => JSON.stringify({ ...JSON.parse(form.elements.what.value), weight: Number(form.elements.weight.value) }), refresh);
  }
}

/** Sends a form with PUT, and shows a refusal beside it. */
export function submits(form, path, body, then) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!checked(form)) return;
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    tell(form, "Loading it …");
    try {
      const headers = { "Content-Type": "application/json" };
      if (form.dataset.match) headers["If-Match"] = form.dataset.match;
      const made = await (await send("PUT", path(), { body: body(), headers })).json();
      await then(made.name);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      complain(form, error.status === 412 ? "It was changed meanwhile. Load the page again and look at it first." : error.message);
    } finally {
      button.disabled = false;
      tell(form, "");
    }
  });
}

/** Follows the figures until the page shows something else. */
export async function figures(main) {
  const place = main.querySelector("[data-figures]");
  if (!place) return;
  const pulse = main.querySelector("[data-pulse]");
  const seen = [];
  let first = null;
  const again = () => (place.isConnected ? seen.length && draw(place, seen) : removeEventListener("resize", again));
  addEventListener("resize", again);
  while (place.isConnected) {
    if (!document.hidden) {
      try {
        const answer = await send("GET", place.dataset.figures);
        const read = gather(await answer.json());
        first ??= read;
        const last = seen.at(-1);
        // A swap loads a new version, which counts from 0.
        if (last && (last.count > read.count || last.version !== read.version)) seen.length = 0;
        seen.push(read);
        while (seen.length && read.at - seen[0].at > SPAN + WINDOW + 5) seen.shift();
        draw(place, seen);
        if (read.version !== first.version || read.state !== first.state || read.routes !== first.routes) return changed(pulse);
        pulse.textContent = read.waiting == null ? "" : `${read.inFlight} in flight, ${read.waiting} of ${read.limit} waiting`;
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        pulse.textContent = error.status === 404 ? "The endpoint is gone." : `No figures: ${error.message}`;
        if (error.status === 404) return;
      }
    }
    await pause(1000);
  }
}

/** Somebody has changed the endpoint: the page shows it when asked, so that nothing that was typed is lost. */
function changed(pulse) {
  const button = el("button", { type: "button", class: "button" }, "Show it as it is now");
  button.addEventListener("click", refresh);
  pulse.replaceChildren("The endpoint has changed. ", button);
}

/** The figures of the default version, its precisions together. */
function gather(figures) {
  const version = figures.versions.find((v) => v.version === figures.default_version);
  const read = { at: figures.at_ms / 1000, version: figures.default_version, requests: {}, buckets: [], count: 0, sum: 0 };
  read.state = version?.state;
  read.routed = figures.versions.filter((v) => v.weight > 0).map((v) => [v.version, v.weight]);
  read.routes = JSON.stringify(read.routed);
  read.answered = {};
  read.unanswered = 0;
  for (const v of figures.versions) {
    for (const p of v.precisions) {
      for (const [outcome, n] of Object.entries(p.requests)) {
        if (outcome === "ok") read.answered[v.version] = (read.answered[v.version] ?? 0) + n;
        else read.unanswered += n;
      }
    }
  }
  read.shadows = figures.versions.map((v) => [v.version, v.shadow]);
  read.batches = version?.batches ?? [];
  read.shadow = version?.shadow ?? null;
  read.inFlight = 0;
  for (const p of version?.precisions ?? []) {
    for (const [outcome, n] of Object.entries(p.requests)) read.requests[outcome] = (read.requests[outcome] ?? 0) + n;
    p.latency.buckets.forEach(([bound, n], i) => {
      read.buckets[i] = [bound, (read.buckets[i]?.[1] ?? 0) + n];
    });
    read.count += p.latency.count;
    read.sum += p.latency.sum;
    read.inFlight += p.in_flight;
    read.waiting = (read.waiting ?? 0) + p.queue_depth;
    read.limit = p.queue_limit;
  }
  return read;
}

/** What was read last at least `WINDOW` seconds before, or else first. */
function before(seen, at) {
  let found = seen[0];
  for (const read of seen) {
    if (read.at <= at - WINDOW + 0.3) found = read;
  }
  return found;
}

/** A quantile of the observations between two readings, linear within its bucket; null where there are none. */
export function quantile(from, to, q) {
  const total = to.count - from.count;
  if (total <= 0) return null;
  let below = 0;
  let lower = 0;
  for (let i = 0; i < to.buckets.length; i++) {
    const [bound, n] = to.buckets[i];
    const upTo = n - (from.buckets[i]?.[1] ?? 0);
    if (upTo >= q * total) {
      const inside = upTo - below;
      return lower + (bound - lower) * (inside > 0 ? (q * total - below) / inside : 1);
    }
    below = upTo;
    lower = bound;
  }
  return lower;
}

function draw(place, seen) {
  const now = seen.at(-1).at;
  const part = (key, name) => place.querySelector(`[data-chart="${key}"] [data-${name}]`);
  const over = (value) => seen.slice(1).map((read) => [read.at, value(before(seen, read.at), read)]);
  const time = (s) => (s === 0 ? "0" : seconds(s).replace(/(\.\d*?)0+ /, (_, kept) => (kept === "." ? " " : `${kept} `)));

  const p50 = over((from, to) => quantile(from, to, 0.5));
  const p99 = over((from, to) => quantile(from, to, 0.99));
  const value = (points) => points.at(-1)?.[1] ?? null;
  const said = (v) => (v == null ? "–" : seconds(v));
  part("latency", "now").textContent = value(p50) == null ? "no requests" : `${said(value(p50))} · ${said(value(p99))}`;
  const latency = [
    { name: "p50", tone: "", points: p50 },
    { name: "p99", tone: "one", points: p99 },
  ];
  lines(part("latency", "plot"), {
    label: `Latency: p50 ${said(value(p50))}, p99 ${said(value(p99))}`,
    series: latency,
    span: SPAN,
    now,
    format: time,
    least: 0.0005,
  });
  key(part("latency", "key"), latency);

  const rate = (outcomes) => (from, to) => {
    const n = (read) => outcomes.reduce((sum, o) => sum + (read.requests[o] ?? 0), 0);
    return to.at > from.at ? (n(to) - n(from)) / (to.at - from.at) : 0;
  };
  const last = (i) => Math.max(0, i - 2);
  const each = (of) => seen.slice(1).map((read, i) => [read.at, of(seen[last(i)], read)]);
  const rise = (n) => (from, to) => (to.at > from.at ? Math.max(0, n(to) - n(from)) / (to.at - from.at) : 0);
  const routed = seen.at(-1).routed;
  const byVersion = routed.length > 1;
  const rates = byVersion
    ? [
        ...routed.map(([version, weight], i) => ({
          name: `version ${version}, ${weight} %`,
          tone: TONES[i % TONES.length],
          points: each(rise((read) => read.answered[version] ?? 0)),
        })),
        { name: "not answered", tone: "bad", points: each(rise((read) => read.unanswered)) },
      ]
    : OUTCOMES.map(([name, tone, outcomes]) => ({ name, tone, points: each(rate(outcomes)) }));
  const perSecond = (byVersion ? rates.slice(0, -1) : rates.slice(0, 1)).reduce((sum, r) => sum + (value(r.points) ?? 0), 0);
  const note = place.querySelector("[data-chart=throughput] figcaption .n");
  note.textContent = byVersion ? "requests a second, by version" : "requests a second, by outcome";
  part("throughput", "now").textContent = `${perSecond.toFixed(perSecond < 10 ? 1 : 0)} /s`;
  // A line along zero says nothing that the legend does not, and lies over the others.
  const drawn = rates.filter((r, i) => i === 0 || (byVersion && r.tone !== "bad") || r.points.some((p) => p[1] > 0));
  lines(part("throughput", "plot"), {
    label: `Throughput: ${rates.map((r) => `${(value(r.points) ?? 0).toFixed(1)} ${r.name}`).join(", ")} a second`,
    series: drawn,
    span: SPAN,
    now,
    format: (v) => String(Number(v.toPrecision(2))),
    least: 1,
  });
  key(part("throughput", "key"), rates);

  const batches = seen.at(-1).batches;
  const runs = batches.reduce((sum, b) => sum + b.runs, 0);
  const samples = batches.reduce((sum, b) => sum + b.runs * b.samples, 0);
  part("batch", "now").textContent = runs ? `${(samples / runs).toFixed(2)} on average` : "no runs";
  bars(part("batch", "plot"), {
    label: `Batch sizes: ${batches.map((b) => `${b.runs} runs of ${b.samples}`).join(", ") || "no runs"}`,
    bars: batches.length ? batches.map((b) => [String(b.samples), b.runs]) : [["1", 0]],
    format: (v) => (v >= 1e4 ? `${v / 1e3} k` : String(v)),
  });

  for (const [version, of] of seen.at(-1).shadows) {
    const cell = document.querySelector(`[data-agreement="${version}"]`);
    if (!cell || !of?.compared) continue;
    cell.firstChild.textContent = percent(of.agreement);
    cell.lastChild.textContent = `${of.compared} compared`;
  }
  const shadow = place.querySelector("[data-shadow]");
  const compared = seen.at(-1).shadow;
  shadow.hidden = !compared?.compared;
  if (compared?.compared) {
    const agreed = (s) => s?.agreed ?? 0;
    const share = over((from, to) => {
      const n = (to.shadow?.compared ?? 0) - (from.shadow?.compared ?? 0);
      return n > 0 ? Math.min(1, (agreed(to.shadow) - agreed(from.shadow)) / n) : null;
    });
    shadow.querySelector("[data-now]").textContent = `${percent(compared.agreement)} of the last samples; ${compared.compared} compared`;
    lines(shadow.querySelector("[data-plot]"), {
      label: `Agreement with float: ${percent(compared.agreement)}`,
      series: [{ name: "agreement", tone: "", points: share }],
      span: SPAN,
      now,
      format: (v) => `${Math.round(v * 100)} %`,
      least: 1,
    });
  }
}

function key(place, series) {
  if (place.textContent === series.map((s) => s.name).join("")) return;
  place.replaceChildren(...series.map((s) => el("span", {}, el("i", { class: s.tone || "main" }), s.name)));
}
