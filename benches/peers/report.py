"""Tables and verdicts from cells, as Markdown. Knows nothing of how they were measured."""

import math
import statistics

OURS = "octet int8"
BASE = "ort int8"
PEER_INTEGERS = ["ort int8", "ort int8 exact", "ort dynamic", "openvino int8"]
# Below this cosine with the float model an engine computes something else. Made-up models lose more than trained
# ones: nothing has taught them to bear rounding.
COSINE_MIN = 0.9


class Results:
    """Cells that were measured, by model, threads and engine."""

    def __init__(self, cells, engines):
        self.cells = {(c["model"], c["threads"], c["engine"]): c for c in cells}
        self.models = list(dict.fromkeys(c["model"] for c in cells))
        self.threads = sorted({c["threads"] for c in cells})
        self.engines = [e for e in engines if any(c["engine"] == e for c in cells)]

    def time(self, model, threads, engine, key="median_ms"):
        return self.cells.get((model, threads, engine), {}).get(key)

    def speedups(self, threads, engine, others, key):
        """{model: how many times as fast the engine is as the fastest of the others}."""
        found = {}
        for model in self.models:
            ours = self.time(model, threads, engine, key)
            theirs = [t for o in others if (t := self.time(model, threads, o, key))]
            if ours and theirs:
                found[model] = min(theirs) / ours
        return found

    def scaling(self, engine, key):
        """{model: how many times as fast the engine is with most threads as with fewest}."""
        few, many = self.threads[0], self.threads[-1]
        pairs = {m: (self.time(m, few, engine, key), self.time(m, many, engine, key)) for m in self.models}
        return {m: a / b for m, (a, b) in pairs.items() if a and b}


def verdicts(results, saturates):
    """One entry for each comparison: {"text", "threads", "median", "min", "models"}, geometric means.

    `saturates` tells of each peer by what worker.py calls it. Where ONNX Runtime's default is exact, so is the
    faster of its two settings: the setting that avoids saturation only costs time there.
    """
    made = []
    exact = ["ort int8 exact"] if saturates["ort"] else ["ort int8", "ort int8 exact"]
    exact_title = "ort int8 exact" if saturates["ort"] else "ort int8 (exact here by default)"

    def add(title, threads, of):
        medians, minima = of("median_ms"), of("min_ms")
        if not medians:
            return
        mean, mean_min = (statistics.geometric_mean(x.values()) for x in (medians, minima))
        worst, best = min(medians, key=medians.get), max(medians, key=medians.get)
        text = (f"{title}: **{mean:.2f}x** by medians, {mean_min:.2f}x by minima; least {medians[worst]:.2f}x "
                f"({worst}), most {medians[best]:.2f}x ({best}); {len(medians)} models")
        made.append({"text": text, "threads": threads, "median": mean, "min": mean_min, "models": medians})

    pairs = [
        (OURS, exact, exact_title),
        (OURS, PEER_INTEGERS, "each model's fastest INT8 peer"),
        (OURS, ["ort float"], "ort float"),
        ("octet w7", exact, exact_title),
        ("octet w7", PEER_INTEGERS, "each model's fastest INT8 peer"),
        ("octet qdq", exact, f"{exact_title}, the same file"),
        ("octet float", ["ort float"], "ort float"),
    ]
    for threads in results.threads:
        for engine, others, title in pairs:
            add(f"{engine} over {title}", threads, lambda key: results.speedups(threads, engine, others, key))
    if len(results.threads) > 1:
        few, many = results.threads[0], results.threads[-1]
        for engine in results.engines:
            add(f"{engine}, {many} threads over {few}", None, lambda key: results.scaling(engine, key))
    return made


def row(values):
    return "| " + " | ".join(values) + " |"


def head(titles, left=1):
    """Title and rule of a table; all but the first columns are numbers."""
    return [row(titles), row(["---"] * left + ["---:"] * (len(titles) - left))]


def milliseconds(value):
    digits = max(0, min(3, 2 - math.floor(math.log10(value))))
    return f"{value:.{digits}f}"


def overview(results, threads):
    """Median (minimum) by model and engine; the fastest INT8 is bold."""
    engines = [e for e in results.engines if any(results.time(m, threads, e) for m in results.models)]
    lines = head(["model", *engines])
    for model in results.models:
        integers = [t for e in engines if "float" not in e and (t := results.time(model, threads, e))]
        texts = []
        for engine in engines:
            median, least = (results.time(model, threads, engine, k) for k in ("median_ms", "min_ms"))
            if median is None:
                failed = "error" in results.cells.get((model, threads, engine), {})
                texts.append("failed" if failed else "")
                continue
            text = f"{milliseconds(median)} ({milliseconds(least)})"
            texts.append(f"**{text}**" if integers and median == min(integers) else text)
        lines.append(row([model, *texts]))
    return lines


def details(results, model, threads, macs, peak_gmacs):
    lines = head(["engine", "min ms", "median ms", "p90 ms", f"x {BASE}", "GMAC/s", "% INT8 peak", "load ms",
                  "peak MB", "cosine"])
    base = results.time(model, threads, BASE)
    for engine in results.engines:
        cell = results.cells.get((model, threads, engine))
        if cell is None:
            continue
        if "error" in cell:
            lines.append(row([engine, cell["error"].replace("|", "/"), *[""] * 8]))
            continue
        gmacs = macs / cell["median_ms"] / 1e6 if macs else None
        peak = gmacs / peak_gmacs * 100 / threads if gmacs and peak_gmacs and "float" not in engine else None
        cosine = cell.get("cosine")
        lines.append(row([
            engine,
            *(milliseconds(cell[k]) for k in ("min_ms", "median_ms", "p90_ms")),
            f"{cell['median_ms'] / base:.2f}" if base else "",
            f"{gmacs:.1f}" if gmacs else "",
            f"{peak:.0f}" if peak else "",
            f"{cell['load_ms']:.0f}",
            f"{cell['peak_rss_bytes'] / 1e6:.0f}",
            "" if cosine is None else f"{cosine:.4f}" + (" **WRONG**" if cosine < COSINE_MIN else ""),
        ]))
    return lines


def markdown(run, cells):
    """The whole table; `run` tells of the machine and the settings."""
    results = Results(cells, run["engines"])
    lines = ["# Octet and its peers", "", *(f"- {fact}" for fact in run["facts"])]
    for threads in results.threads:
        plural = "thread" if threads == 1 else "threads"
        lines += ["", f"## {threads} {plural}: median (minimum), ms", "", *overview(results, threads), ""]
        lines += [f"- {v['text']}" for v in run["verdicts"] if v["threads"] == threads]
    scaling = [v for v in run["verdicts"] if v["threads"] is None]
    if scaling:
        lines += ["", "## More threads", "", *(f"- {v['text']}" for v in scaling)]
    for model in results.models:
        for threads in results.threads:
            lines += ["", f"## {model}, {threads} thread{'s' if threads > 1 else ''}", ""]
            lines += details(results, model, threads, run["macs"].get(model), run["peak"].get("gmacs"))
    return "\n".join(lines) + "\n"
