// Charts as SVG: lines over time, and bars. Drawn at the size they have, so that text and strokes are never stretched.

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

/** The first of 1, 2, 5, 10, … times a power of ten that is not below x. */
export function ceiling(x) {
  if (!(x > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 5, 10].map((m) => m * power).find((m) => m >= x * 0.999999) ?? x;
}

function frame(holder, label) {
  const width = Math.max(holder.clientWidth, 160);
  const height = Math.max(holder.clientHeight, 90);
  const box = { left: 54, right: width - 6, top: 8, bottom: height - 20 };
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  return { drawing, box };
}

function rules(drawing, box, max, format) {
  for (const part of [0, 0.5, 1]) {
    const y = box.bottom - part * (box.bottom - box.top);
    drawing.append(
      svg("line", { class: "rule", x1: box.left, x2: box.right, y1: y, y2: y }),
      svg("text", { class: "tick", x: box.left - 6, y: y + 4, "text-anchor": "end" }, format(part * max)),
    );
  }
}

/**
 * Lines over the last `span` seconds. `series`: `{ name, tone, points: [[time, value or null], …] }`, times in seconds.
 */
export function lines(holder, { label, series, span, now, format, least = 0 }) {
  const { drawing, box } = frame(holder, label);
  const values = series.flatMap((s) => s.points.map((p) => p[1])).filter((v) => v != null);
  const max = ceiling(Math.max(least, ...values, 0));
  rules(drawing, box, max, format);
  const x = (t) => box.right - ((now - t) / span) * (box.right - box.left);
  const y = (v) => box.bottom - (Math.min(v, max) / max) * (box.bottom - box.top);
  for (const { tone, points } of series) {
    let path = "";
    let pen = "M";
    for (const [t, v] of points) {
      if (v == null || now - t > span) {
        pen = "M";
        continue;
      }
      path += `${pen}${x(t).toFixed(1)} ${y(v).toFixed(1)}`;
      pen = "L";
    }
    if (path) drawing.append(svg("path", { class: `line ${tone}`, d: path }));
    const last = points.at(-1);
    if (last && last[1] != null) drawing.append(svg("circle", { class: `end ${tone}`, cx: x(last[0]), cy: y(last[1]), r: 3 }));
  }
  const tick = (text, at, anchor) => svg("text", { class: "tick", x: at, y: box.bottom + 15, "text-anchor": anchor }, text);
  drawing.append(tick(`${span} s ago`, box.left, "start"), tick("now", box.right, "end"));
  holder.replaceChildren(drawing);
}

/** Bars side by side: `bars` are `[name, value]`. */
export function bars(holder, { label, bars: list, format }) {
  const { drawing, box } = frame(holder, label);
  const max = ceiling(Math.max(...list.map((b) => b[1]), 0));
  rules(drawing, box, max, format);
  const step = (box.right - box.left) / Math.max(list.length, 1);
  const width = Math.min(step * 0.6, 46);
  list.forEach(([name, value], i) => {
    const middle = box.left + (i + 0.5) * step;
    const height = (value / max) * (box.bottom - box.top);
    const bar = svg("rect", { class: "column", x: middle - width / 2, y: box.bottom - height, width, height, rx: 2 });
    bar.append(svg("title", {}, `${name}: ${value}`));
    drawing.append(bar, svg("text", { class: "tick", x: middle, y: box.bottom + 15, "text-anchor": "middle" }, name));
  });
  holder.replaceChildren(drawing);
}
