"""Draws results.json: latency relative to ONNX Runtime's INT8, and the share of the machine's INT8 peak.

    python plot.py results.json latency.png

One thread only, or as few as were measured.
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 The backend comes first: there may be no screen.
from matplotlib import ticker  # noqa: E402

BASE = "ort int8"
# Blue is Octet, orange ONNX Runtime, green OpenVINO; pale is float.
COLORS = {
    "octet int8": "#08519c", "octet w7": "#3182bd", "octet qdq": "#74a9cf", "octet float": "#c6dbef",
    "ort int8": "#a63603", "ort int8 exact": "#e6550d", "ort dynamic": "#fd8d3c", "ort float": "#fdd0a2",
    "openvino int8": "#238b45", "openvino float": "#bae4b3",
}

TICKS = [0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32]


def bars(axes, models, engines, value, bottom=0.0):
    """A group for each model, a bar for each engine that has a value there."""
    for group, model in enumerate(models):
        present = [e for e in engines if value(model, e) is not None]
        width = 0.84 / max(1, len(present))
        for place, engine in enumerate(present):
            x = group + (place - (len(present) - 1) / 2) * width
            axes.bar(x, value(model, engine) - bottom, width * 0.94, bottom=bottom, color=COLORS[engine])
    axes.set_xticks(range(len(models)), models)
    axes.set_xlim(-0.5, len(models) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main():
    run = json.loads(open(sys.argv[1], encoding="utf-8").read())
    threads = min(c["threads"] for c in run["cells"])
    cells = {(c["model"], c["engine"]): c for c in run["cells"] if c["threads"] == threads and "median_ms" in c}
    models = list(dict.fromkeys(model for model, _ in cells))
    engines = [e for e in COLORS if any(engine == e for _, engine in cells)]
    peak = run["peak"].get("gmacs")

    def relative(model, engine):
        ours, base = cells.get((model, engine)), cells.get((model, BASE))
        return ours["median_ms"] / base["median_ms"] if ours and base else None

    def share(model, engine):
        cell, macs = cells.get((model, engine)), run["macs"].get(model)
        return macs / cell["median_ms"] / 1e4 / peak / threads if cell and macs and peak else None

    integers = [e for e in engines if not e.endswith("float")]
    counted = [m for m in models if any(share(m, e) for e in integers)]
    panels = 2 if counted else 1
    size = (max(9.0, 1.75 * len(models)), 4.6 * panels)
    figure, axes = plt.subplots(panels, 1, figsize=size, squeeze=False, layout="constrained")
    top = axes[0, 0]
    bars(top, models, [e for e in engines if e != BASE], relative, bottom=1.0)
    top.set_yscale("log", base=2)
    low, high = top.get_ylim()
    top.yaxis.set_major_locator(ticker.FixedLocator([t for t in TICKS if low <= t <= high]))
    top.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    top.axhline(1, color=COLORS[BASE], linewidth=1.6)
    top.set_ylabel(f"median latency / {BASE}'s\nbelow the line is faster")
    plural = "thread" if threads == 1 else "threads"
    seen = "" if run["cpu"] == "native" else f", seen as one with {run['cpu']} at best"
    top.set_title(f"{run['machine']}{seen}; {threads} {plural}", loc="left")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[e]) for e in engines]
    figure.legend(handles, engines, loc="outside lower center", ncols=5 if len(models) < 8 else 10, frameon=False)
    if panels == 2:
        bottom = axes[1, 0]
        bars(bottom, counted, integers, share)
        bottom.set_ylabel(f"% of INT8 peak\n({run['peak']['instruction']}, {peak:.0f} GMAC/s a core)")
    figure.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
