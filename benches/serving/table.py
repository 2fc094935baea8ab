"""The tables, and what was promised against what was measured."""

import os

import compare

QUICKEST_FIRST = ["shared", "binary", "json"]
# So many times the best peer's requests a second.
AIM_JSON, AIM_BINARY = 5, 8
ADDED_JSON_MS, ADDED_BINARY_MS, EMPTY_P50_MS = 5, 0.5, 0.15
OVERHEAD_MAX, BATCHING_MIN = 0.03, 0.95


def cell(found, server, encoding, connections):
    for c in found["cells"]:
        if (c["server"], c["encoding"], c["connections"]) == (server, encoding, connections):
            return c
    return None


def best_peer(found, encoding, connections, key="rps", best=max):
    """The best cell of a peer with the same body, else with the quickest that it takes."""
    for wanted in QUICKEST_FIRST[QUICKEST_FIRST.index(encoding):]:
        of_peers = [c for c in found["cells"]
                    if c["server"] != "octet" and c["encoding"] == wanted and c["connections"] == connections]
        if of_peers:
            return best(of_peers, key=lambda c: c[key])
    return None


def verdict(goal, measured, wanted, kept):
    return {"goal": goal, "measured": measured, "wanted": wanted, "kept": kept}


def verdicts(results):
    """Every promise that these results can judge."""
    found = []
    for name, model in results["models"].items():
        # Promises are about INT8; `image` and `empty` have nothing to quantize.
        if model["precision"] != "int8" and name not in ("image", "empty"):
            continue
        bench = model["bench_ms"]
        compute = bench["batch 1 threads 1"]
        if name in ("mlp", "resnet8"):
            for encoding, aim in (("json", AIM_JSON), ("binary", AIM_BINARY)):
                for count in compare.PLAN[name][2]:
                    ours, theirs = cell(model, "octet", encoding, count), best_peer(model, encoding, count)
                    if not (ours and theirs):
                        continue
                    ratio = ours["rps"] / theirs["rps"]
                    found.append(verdict(f"{name}, {encoding}, {count} connections: requests/s against the best peer",
                                         f"{ratio:.2f}x {theirs['server']} {theirs['encoding']}", f"{aim}x",
                                         ratio >= aim))
                    tail = best_peer(model, encoding, count, "p99_ms", min)
                    found.append(verdict(f"{name}, {encoding}, {count} connections: p99 below every peer's",
                                         f"{ours['p99_ms']:.2f} ms; {tail['server']} {tail['p99_ms']:.2f} ms", "less",
                                         ours["p99_ms"] < tail["p99_ms"]))
        elif name == "image":
            for encoding, aim in (("json", ADDED_JSON_MS), ("binary", ADDED_BINARY_MS), ("shared", ADDED_BINARY_MS)):
                for server in ("octet", "fastapi"):
                    c = cell(model, server, encoding, 1)
                    if c:
                        added = c["p50_ms"] - compute
                        found.append(verdict(f"3x224x224 as {encoding}: added by {server} (p50 less compute)",
                                             f"{added:.2f} ms", f"{aim} ms" if server == "octet" else "to compare",
                                             added <= aim if server == "octet" else None))
        elif name == "empty":
            for encoding in ("json", "binary"):
                c = cell(model, "octet", encoding, 1)
                if c:
                    found.append(verdict(f"empty model as {encoding}: p50 at 1 connection", f"{c['p50_ms'] * 1e3:.0f} µs",
                                         f"{EMPTY_P50_MS * 1e3:.0f} µs", c["p50_ms"] <= EMPTY_P50_MS))
        else:
            # A run that is alone has all threads.
            compute = min(ms for key, ms in bench.items() if key.startswith("batch 1 "))
            eight = next((ms for key, ms in bench.items() if key.startswith("batch 8")), None)
            for encoding in ("binary", "shared"):
                alone, together = cell(model, "octet", encoding, 1), cell(model, "octet", encoding, 16)
                if alone:
                    over = 1000 / alone["rps"] / compute - 1
                    found.append(verdict(f"{name}, {encoding}, 1 connection: server's part on top of compute",
                                         f"{over:.1%} of {compute:.2f} ms", f"under {OVERHEAD_MAX:.0%}",
                                         over < OVERHEAD_MAX))
                if together and eight:
                    part = together["rps"] / (8000 / eight)
                    found.append(verdict(f"{name}, {encoding}, 16 connections: of the batch-8 throughput of octet bench",
                                         f"{part:.2f} of {8000 / eight:.0f}/s", f"{BATCHING_MIN}",
                                         part >= BATCHING_MIN))
    return found


def tables(results):
    lines = [f"# Serving: {', '.join(results['models'])}", ""]
    lines += [f"- {fact}" for fact in results["facts"]]
    for name, model in results["models"].items():
        sizes = ", ".join(f"{e} {b / 1000:.1f} kB" for e, b in model["body_bytes"].items())
        timed = ", ".join(f"{k}: {v:.3f} ms" for k, v in model["bench_ms"].items())
        lines += ["", f"## {name}, {model['precision']}", "", f"Bodies: {sizes}. `octet bench`, {timed}.", "",
                  "| server | body | connections | requests/s | min to max | p50 ms | p99 ms | RSS MB | "
                  "against the best peer | |", "|---|---|---:|---:|---|---:|---:|---:|---:|---|"]
        for c in sorted(model["cells"], key=lambda c: (c["encoding"], c["connections"], -c["rps"])):
            peer = best_peer(model, c["encoding"], c["connections"])
            ratio = f"{c['rps'] / peer['rps']:.2f}x" if peer and c["server"] == "octet" else ""
            marks = [f"{c['errors']} ERRORS"] if c["errors"] else []
            marks += [f"WRONG (cosine {c['cosine']:.4f})"] if c["cosine"] < compare.COSINE_MIN else []
            lines.append(f"| {c['server']} | {c['encoding']} | {c['connections']} | {c['rps']:.0f} | "
                         f"{c['rps_min']:.0f} to {c['rps_max']:.0f} | {c['p50_ms']:.3f} | {c['p99_ms']:.3f} | "
                         f"{c['rss_bytes'] / 1e6:.0f} | {ratio} | {', '.join(marks)} |")
        lines += [f"\nNOT RUN: {peer}: {why.splitlines()[-1]}" for peer, why in model["failed"].items()]
    judged = results["verdicts"]
    if judged:
        lines += ["", "## Goals", "", "| goal | measured | wanted | kept |", "|---|---|---|---|"]
        kept = {True: "yes", False: "**no**", None: ""}
        lines += [f"| {v['goal']} | {v['measured']} | {v['wanted']} | {kept[v['kept']]} |" for v in judged]
    for name, scenario in results["scenarios"].items():
        lines += ["", f"## Scenario: {name}", ""] + [f"- {line}" for line in scenario["lines"]]
        kept = {True: "yes", False: "**no**", None: "not judged"}
        lines += [f"- {v['goal']}: {v['measured']} (wanted: {v['wanted']}): {kept[v['kept']]}"
                  for v in scenario["verdicts"]]
    return "\n".join(lines) + "\n"


def facts(arguments, octet_version, machine, at):
    before, after = at["load_before"], at["load_after"]
    return [
        f"{machine}, {os.cpu_count()} cores; {at['time']}; load of the machine {before:.1f} before, {after:.1f} after",
        f"{octet_version}; fastapi with {compare.WORKERS['fastapi']} workers, litserve with "
        f"{compare.WORKERS['litserve']}, mlserver in one process; all of them run the same ONNX file in ONNX Runtime "
        "1.32 with one thread",
        f"medians of {arguments.rounds} rounds of {arguments.seconds} s, {compare.WARM_UP_S} s of warm-up before the first; servers "
        "take turns and are stopped meanwhile; wrk shares the cores",
        "binary tensors: litserve and mlserver take none over HTTP, so fastapi is the peer, with the body and headers "
        "of the Open Inference Protocol read by hand",
    ]
