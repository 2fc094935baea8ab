// The forms that roll out: shares of the versions, and how the endpoint serves.

import { ask } from "./ask.js";
import { checked, complain, refresh } from "./net.js";
import { submits } from "./endpoint.js";

export function forms(main) {
  main.querySelectorAll("form[data-routes]").forEach(shares);
  main.querySelectorAll("form[data-settings]").forEach(settings);
}

function shares(form) {
  const fields = [...form.querySelectorAll("[data-version]")];
  const place = form.querySelector("[data-sum]");
  const sum = () => fields.reduce((total, field) => total + Number(field.value), 0);
  const show = () => {
    const total = sum();
    place.textContent = total === 100 ? "They add up to 100, as they must." : `They add up to ${total}; they must add up to 100.`;
    place.classList.toggle("poor", total !== 100);
  };
  form.addEventListener("input", show);
  show();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!checked(form)) return;
    if (sum() !== 100) return complain(form, `The shares add up to ${sum()}; they must add up to 100.`);
    const routes = fields.map((field) => ({ version: Number(field.dataset.version), weight: Number(field.value) }));
    const said = routes.filter((r) => r.weight > 0).map((r) => `${r.weight} % to version ${r.version}`);
    const button = form.querySelector("[type=submit]");
    Object.assign(button.dataset, {
      act: "PUT",
      path: form.dataset.routes,
      question: `Send ${said.join(", ")}?`,
      then: location.pathname,
      body: JSON.stringify({ routes }),
      match: form.dataset.match,
    });
    ask(button);
  });
}

/** What the form of the settings says; an empty field is null, the setting of the server. */
function read(form) {
  const field = form.elements;
  const number = (name) => (field[name].value === "" ? null : Number(field[name].value));
  // Not 0.07 * 100 = 7.000000000000001.
  const share = (name) => (number(name) == null ? null : Number((number(name) / 100).toFixed(6)));
  const some = (object) => {
    const kept = Object.entries(object).filter(([, value]) => value != null);
    return kept.length ? Object.fromEntries(kept) : null;
  };
  const fraction = share("fraction") ?? (field.statistics.checked ? 0 : null);
  return {
    shadow: fraction == null ? null : { fraction, statistics: field.statistics.checked },
    rollback: some({ min_agreement: share("min_agreement"), max_error_ratio: share("max_error_ratio"), min_requests: number("min_requests") }),
    batching: some({ max: number("batch_max"), delay_us: number("batch_delay") }),
    queue_limit: number("queue_limit"),
    concurrency: number("concurrency"),
    required: field.required.checked || null,
  };
}

function settings(form) {
  const before = read(form);
  const body = () => {
    const changed = Object.entries(read(form)).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(before[key]));
    return JSON.stringify(Object.fromEntries(changed));
  };
  submits(form, () => form.dataset.settings, body, refresh);
}
