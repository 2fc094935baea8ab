"""Tables of what was found, in Markdown, with what did not run: `(text, failures)`."""

import statistics

from accuracy import best


def grid(heads, rows):
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads),
                      *("| " + " | ".join(row) + " |" for row in rows)])


def number(value, digits, sign=""):
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def difference(ours, theirs):
    return None if ours is None or theirs is None else ours - theirs


def accuracy(results):
    failures, parts = [], []
    for r in results:
        if "error" in r:
            failures.append(f"{r['model']}: {r['error']}")
        elif best(r["variants"], "sqnr_db") is None:
            failures.append(f"{r['model']}: none of ONNX Runtime's variants ran")
        if "error" in r.get("octet", {}):
            failures.append(f"{r['model']}: {r['octet']['error']}")
    if any("octet" in r for r in results):
        parts += [versus(results), verdicts(results)]
    parts.append(theirs(results))
    return "\n\n".join(parts) + "\n", failures


# A judge of Octet's file, and how the table calls it.
JUDGES = {"octet": "Octet", "ort": "ONNX Runtime"}


def static(variants):
    """Those that have ranges of activations before they run, as Octet's default has."""
    return [v for v in variants if v["method"] != "dynamic"]


def pairs(results, judge, field, of=lambda variants: variants):
    """[(model, Octet's, ONNX Runtime's best)] where both ran."""
    found = []
    for r in results:
        ours, theirs = r.get("octet", {}).get(judge), best(of(r.get("variants", [])), field)
        if ours and ours[field] is not None and theirs:
            found.append((r["model"], ours[field], theirs[field]))
    return found


def named(row, field, digits):
    """A figure and whose it is."""
    return "none ran" if row is None else f"{row[field]:.{digits}f} ({row['variant']})"


def versus(results):
    """Two tables with a model a row: ONNX Runtime's best and Octet's file, judged twice."""
    decibels, answers = [], []
    for r in results:
        variants, ours = r.get("variants", []), r.get("octet", {})
        name = r["model"] + (" **NOT RUN**" if "error" in ours or "error" in r else "")
        judged = [ours.get(judge, {}) for judge in JUDGES]
        loudest, quiet = best(variants, "sqnr_db"), best(static(variants), "sqnr_db")
        closest, rightest = best(variants, "agreement"), best(variants, "top1")
        db = [j.get("sqnr_db") for j in judged]
        to = [difference(mine, best_row and best_row["sqnr_db"]) for best_row in (loudest, quiet) for mine in db]
        decibels.append([name, named(loudest, "sqnr_db", 2), named(quiet, "sqnr_db", 2),
                         *(number(d, 2) for d in db), *(number(d, 2, "+") for d in to)])
        answers.append([name, r.get("facts", {}).get("score", "-"), named(closest, "agreement", 4),
                        *(number(j.get("agreement"), 4) for j in judged),
                        *(number(difference(j.get("agreement"), closest and closest["agreement"]), 4, "+")
                          for j in judged),
                        number(closest and closest["float_top1"], 4), number(rightest and rightest["top1"], 4),
                        *(number(j.get("top1"), 4) for j in judged),
                        *(number(difference(j.get("top1"), rightest and rightest["top1"]), 4, "+") for j in judged)])
    twice = ["Octet in Octet", "in ORT"]
    return "\n\n".join([
        "Output SQNR, dB. The differences are to ONNX Runtime's best, then to its best with static ranges.",
        grid(["model", "ORT best", "ORT best static", *twice, "difference", "in ORT", "to static", "in ORT"], decibels),
        "Agreement with the float model, and top-1 where there are labels.",
        grid(["model", "agreement of", "ORT best", *twice, "difference", "in ORT", "top-1 float", "ORT best", *twice,
              "difference", "in ORT"], answers)])


def verdicts(results):
    """Mean and least difference for each judge, and where Octet is behind."""
    lines = []
    for judge, name in JUDGES.items():
        for of, what in ((list, "best"), (static, "best static")):
            decibels = {m: a - b for m, a, b in pairs(results, judge, "sqnr_db", of)}
            if not decibels:
                continue
            least = min(decibels, key=decibels.get)
            line = (f"- Judged in {name}, against ONNX Runtime's {what}, {len(decibels)} models: mean "
                    f"{statistics.mean(decibels.values()):+.2f} dB, least {decibels[least]:+.2f} dB ({least})")
            for field, word in (("agreement", "agreement"), ("top1", "top-1")):
                lower = [f"{m} {a - b:+.4f}" for m, a, b in pairs(results, judge, field, of) if a < b]
                line += f"; {word} lower on {', '.join(lower) or 'none'}"
            lines.append(line)
    programs = sorted({r["octet"]["octet_sha256"] for r in results if "octet" in r})
    lines.append(f"- Octet: the program with SHA-256 {', '.join(programs)}")
    return "\n".join(lines)


def theirs(results):
    """All variants of ONNX Runtime's quantizer, those that broke too."""
    heads = ["model", "variant", "dB", "agreement", "top-1", "size KB", "s", "samples"]
    rows = []
    for r in results:
        for v in r.get("variants", []):
            count = str(v.get("samples") or "-") + (f", {v['stride']} at a time" if v.get("stride") else "")
            figures = [number(v.get("sqnr_db"), 2), number(v.get("agreement"), 4), number(v.get("top1"), 4),
                       number(v["bytes"] / 1000 if "bytes" in v else None, 0), number(v.get("quantize_s"), 1), count]
            if "error" in v:
                figures[0] = "broke: " + v["error"].replace("|", "/")[:120]
            rows.append([r["model"], v["variant"], *figures])
    return grid(heads, rows)


def cost(rows):
    """A quantizer a row, and how much faster Octet is with the same ranges."""
    failures = [f"{r['quantizer']}, {r['images']} images: {r['error']}" for r in rows
                if "error" in r and r["quantizer"].startswith("octet")]
    failures += [f"{r['quantizer']}, {r['images']} images: {r['error']}" for r in rows
                 if "error" in r and r["quantizer"].startswith("ort") and "out of memory" not in r["error"]]
    heads = ["quantizer", "images", "wall s", "CPU s", "peak MB", "of ORT's wall", "load before", ""]
    lines = []
    for r in rows:
        lines.append([r["quantizer"], str(r["images"]), f"{r['wall_s']:.1f}", f"{r['cpu_s']:.1f}", str(r["peak_mb"]),
                      against(r, rows), f"{r['load']:.1f}", r.get("error", "")])
    return grid(heads, lines) + "\n", failures


def against(row, rows):
    """How many times as fast as ONNX Runtime with the same method; with few samples at a time where all do not fit."""
    if row["quantizer"].startswith("ort") or "error" in row:
        return ""
    for peer in rows:
        same = peer["images"] == row["images"] and peer["method"] == row["method"]
        if same and peer["quantizer"].startswith("ort") and "error" not in peer:
            return f"{peer['wall_s'] / row['wall_s']:.1f}x as fast as {peer['quantizer']}"
    return ""
