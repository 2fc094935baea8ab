#!/usr/bin/env python3
"""Compares Octet's engine with ONNX Runtime and OpenVINO: sets up everything, measures, writes a table and a plot.

    python3 benches/peers/run.py [--models resnet18,minilm_l6] [--cpu avx2] ...

README.md tells what is measured and how to read it. Needs Python 3.11, the Rust toolchain and a C compiler.
"""

import argparse
import datetime
import hashlib
import json
import math
import os
import pathlib
import platform
import subprocess
import sys

import measure
import report

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGET = ROOT / "target/peers"
PYTHON = TARGET / "venv/bin/python"
MODELS = ["resnet18.b1", "resnet50.b1", "mobilenetv2.b1", "efficientnet_lite0.b1", "yolov8n.b1", "minilm_l6.b1",
          "deit_tiny.b1", "resnet18.b8", "mobilenetv2.b8"]
ZOO_MODELS = ["zoo_efficientnet_lite0", "zoo_ppocr_det", "zoo_ppocr_cls"]
# Peers quantize these dynamically, too.
TRANSFORMERS = ["minilm_l6.b1", "deit_tiny.b1"]
# Codes of at most 64: the sum of two products fits 16 bits, so the fast instruction of AVX2 is exact.
RECIPES = {".octet.onnx": None, ".octet_w7.onnx": {"weights": {"max_code": 64}}}
# Exit status of a program that cpuid_mask.c could not serve.
CANNOT_MASK = 77


def say(text):
    print(text, flush=True)


def output(*command, **more):
    """What a command prints; its failure is ours."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def last_line(text):
    return (text.strip().splitlines() or ["no reason given"])[-1]


def older(path, *others):
    """Whether a file is missing or older than what it is made from."""
    return not path.exists() or any(path.stat().st_mtime < o.stat().st_mtime for o in others)


def set_up_python(wanted=HERE / "requirements.txt", venv=TARGET / "venv"):
    """A virtual environment with the versions of a requirements.txt."""
    stamp = venv / "requirements.sha256"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    say("Setting up Python: venv")
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    subprocess.run([venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", wanted],
                   check=True)
    stamp.write_text(digest)


def build_octet():
    say("Building Octet")
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "release/octet"


def compiled(source, *options):
    """A program or library made from a C file, of those beside this one by its name; None without a compiler."""
    source, out = HERE / source, TARGET / pathlib.Path(source).stem
    if older(out, source):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run([os.environ.get("CC", "cc"), "-O2", *options, "-o", out, source], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            say(f"{source.name} cannot be compiled: {error}")
            return None
    return out


def mask_environment(cpu):
    """Variables that make a worker see this processor; ends the program where that cannot be had."""
    if cpu == "native":
        return {}
    library = compiled("cpuid_mask.c", "-shared", "-fPIC")
    if library is None:
        sys.exit(f"--cpu {cpu} needs a C compiler")
    environment = {"LD_PRELOAD": str(library), "CPUID_MASK": cpu}
    tried = subprocess.run([PYTHON, "-c", ""], env=os.environ | environment, check=False)
    if tried.returncode == CANNOT_MASK:
        sys.exit(f"--cpu {cpu}: this machine cannot hide what its processor has (no cpuid_fault in /proc/cpuinfo)")
    tried.check_returncode()
    return environment


def make_models(names, zoo, folder):
    """Float models and their data; what the float model makes of its input is the reference of the others."""
    ours = [n for n in names if n not in ZOO_MODELS and older(folder / f"{n}.json", HERE / "models.py")]
    theirs = [n for n in names if n in ZOO_MODELS and older(folder / f"{n}.json", HERE / "models.py", HERE / "zoo.py")]
    if ours:
        say(f"Making {', '.join(ours)}")
        subprocess.run([PYTHON, HERE / "models.py", folder, *ours], check=True)
    if theirs:
        say(f"Preparing {', '.join(theirs)}")
        plain = [n.removeprefix("zoo_") for n in theirs]
        subprocess.run([PYTHON, HERE / "zoo.py", folder, zoo, *plain], check=True)


def quantize_for_peers(names, folder):
    for name in names:
        for kind in ["static", "dynamic"] if name in TRANSFORMERS else ["static"]:
            out = folder / f"{name}.{kind}.onnx"
            model, calibration = folder / f"{name}.onnx", folder / f"{name}.calib.npz"
            if older(out, model, HERE / "quantize.py"):
                say(f"Quantizing {name} for the peers, {kind}")
                out.unlink(missing_ok=True)
                part = folder / "part.onnx"  # What is interrupted does not look done.
                command = [PYTHON, HERE / "quantize.py", model, calibration, kind, part]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    part.rename(out)
                else:
                    say(f"  not made: {last_line(done.stderr)}")


def quantize_with_octet(names, folder, octet, endings):
    """Octet's artifacts; a recipe that this Octet refuses is left out, and why is printed."""
    for ending in endings:
        for name in names:
            out = folder / f"{name}{ending}"
            model, calibration = folder / f"{name}.onnx", folder / f"{name}.calib.npz"
            # Another program may be older and still another.
            maker = out.with_suffix(".maker")
            identity = f"{octet} {octet.stat().st_size} {octet.stat().st_mtime_ns}"
            if not older(out, model) and maker.exists() and maker.read_text() == identity:
                continue
            say(f"Quantizing {name} with Octet{', W7' if RECIPES[ending] else ''}")
            out.unlink(missing_ok=True)
            command = [octet, "quantize", model, "--calibration", calibration, "--output", out]
            if RECIPES[ending]:
                recipe = folder / "recipe.json"
                recipe.write_text(json.dumps(RECIPES[ending]))
                command += ["--recipe", recipe]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                maker.write_text(identity)
                continue
            say(f"  not made: {last_line(done.stderr)}")
            if RECIPES[ending] and "recipe" in done.stderr:
                say("  this Octet does not know the recipe: its engine is skipped")
                for stale in folder.glob(f"*{ending}"):
                    stale.unlink()
                break


def make_references(names, place):
    """What ONNX Runtime's float makes of each model's input, on the processor as it is."""
    engine = next(e for e in measure.ENGINES if e.name == "ort float")
    for name in names:
        out = place.models / f"{name}.reference.npz"
        if older(out, place.models / f"{name}.json"):
            part = place.models / "part.npz"
            error = measure.save_outputs(place, engine, name, 1, part)
            if error:
                sys.exit(f"{name}: ONNX Runtime cannot run the float model: {error}")
            part.rename(out)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def check_saturation(cpu, environment):
    """Whether each peer saturates; a mask that shows no effect ends the program."""
    found = json.loads(output(PYTHON, HERE / "saturation.py", env=os.environ | environment))
    if cpu == "avx2" and not (found["ort"] and found["openvino"]):
        sys.exit(f"--cpu avx2 has no effect: without VNNI both peers saturate, but here {found}")
    if cpu in ("avxvnni", "avx512vnni") and (found["ort"] or found["openvino"]):
        say(f"warning: with VNNI no peer should saturate, but {found}")
    return found


def peak(environment):
    """The most that one core's best INT8 instruction can do: {"instruction", "gmacs"}; empty if not known."""
    program = compiled("peak.c")
    if program is None:
        return {}
    done = subprocess.run([program], env=os.environ | environment, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def facts(run, arguments):
    """What a reader of the table must know, a sentence each."""
    seen = "as it is" if run["cpu"] == "native" else f"seen as one with {run['cpu']} at best"
    lines = [
        f"{run['machine']}, {os.cpu_count()} cores, {seen}; {run['at']}; load of the machine "
        f"{run['load'][0]:.1f} before, {run['load'][1]:.1f} after",
        f"{run['octet']}; " + ", ".join(line.replace("==", " ") for line in run["versions"]),
        f"{arguments.rounds} rounds of bursts of {arguments.burst_ms:g} ms; bold is the fastest INT8 of a model",
    ]
    if run["peak"]:
        lines.append(f"INT8 peak of a core: {run['peak']['gmacs']:.0f} GMAC/s ({run['peak']['instruction']})")
    saturating = [{"ort": "ort int8", "ort-exact": "ort int8 exact"}.get(k, "openvino int8")
                  for k, wrong in run["saturates"].items() if wrong]
    lines.append(f"Saturate here, so their results may be wrong: {', '.join(saturating)}" if saturating
                 else "No peer's integer sums saturate here")
    lines.append(f"Octet's kernels: {', '.join(run['isa']) or 'unknown'}")
    bases = [c["base_rss_bytes"] for c in run["cells"] if "base_rss_bytes" in c]
    if bases:
        span = f"{min(bases) / 1e6:.0f} to {max(bases) / 1e6:.0f}"
        lines.append(f"Of a peer's memory {span} MB are Python and libraries, not the model")
    wrong = [f"{c['engine']} on {c['model']} ({c['cosine']:.3f})" for c in run["cells"]
             if c.get("cosine", 1) < report.COSINE_MIN]
    if wrong:
        lines.append(f"**WRONG**: far from the float model are {'; '.join(dict.fromkeys(wrong))}")
    return lines


def chosen(names, asked, what):
    """The names asked for; `resnet18` stands for all its batches."""
    if asked is None:
        return names
    found = [n for a in asked.split(",") for n in names if a in (n, n.rsplit(".b", 1)[0])]
    for a in asked.split(","):
        if not any(a in (n, n.rsplit(".b", 1)[0]) for n in names):
            sys.exit(f"{what}: no `{a}`, only {', '.join(names)}")
    return list(dict.fromkeys(found))


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", metavar="A,B", help="only these (resnet18 or resnet18.b8) [default: all]")
    parser.add_argument("--threads", metavar="N,M", default="1,2", help="thread counts [default: 1,2]")
    parser.add_argument("--engines", metavar="A,B", help="only these, such as `octet int8,ort int8` [default: all]")
    parser.add_argument("--rounds", type=int, default=10, help="bursts for each engine [default: 10]")
    parser.add_argument("--burst-ms", type=float, default=200, help="about how long a burst takes [default: 200]")
    parser.add_argument("--cpu", choices=["native", "avx512vnni", "avxvnni", "avx2"], default="native",
                        help="let engines see a processor with this at best [default: native]")
    parser.add_argument("--zoo", type=pathlib.Path, metavar="DIR", help="folder with trained models, measured too")
    parser.add_argument("--octet", type=pathlib.Path, metavar="PATH", help="this program instead of a build")
    parser.add_argument("--nice", type=int, default=-10, metavar="N",
                        help="priority of what is measured, if permitted; 0 leaves it [default: -10]")
    return parser.parse_args()


def measure_all(place, names, engines, thread_counts, arguments):
    cells = []
    for name in names:
        present = [e for e in engines if place.path(e, name).exists()]
        alike = measure.cosines(place, name, present, thread_counts[0])
        for threads in thread_counts:
            for cell in measure.measure(place, name, threads, present, arguments.rounds, arguments.burst_ms, name):
                if cell["engine"] in alike:
                    cell["cosine"] = alike[cell["engine"]]
                cells.append(cell)
                told = cell.get("error") or (f"median {cell['median_ms']:9.3f} ms, min {cell['min_ms']:9.3f}, cosine "
                                             f"{cell.get('cosine', math.nan):.4f}")
                say(f"{name:24}{threads} thread(s)  {cell['engine']:16}{told}")
    return cells


def main():
    arguments = parse()
    if sys.platform != "linux" or platform.machine() != "x86_64":
        sys.exit("the comparison runs on Linux on x86-64")
    names = chosen(MODELS + (ZOO_MODELS if arguments.zoo else []), arguments.models, "--models")
    engine_names = chosen([e.name for e in measure.ENGINES], arguments.engines, "--engines")
    engines = [e for e in measure.ENGINES if e.name in engine_names]
    thread_counts = [int(n) for n in arguments.threads.split(",")]
    models = TARGET / "models"
    models.mkdir(parents=True, exist_ok=True)

    set_up_python()
    octet = arguments.octet.resolve() if arguments.octet else build_octet()
    environment = mask_environment(arguments.cpu)
    saturates = check_saturation(arguments.cpu, environment)
    make_models(names, arguments.zoo, models)
    make_references(names, measure.Place(PYTHON, octet, models, {}, 0))
    quantize_for_peers(names, models)
    quantize_with_octet(names, models, octet, [e for e in RECIPES if any(e == g.file for g in engines)])

    load = os.getloadavg()[0]
    place = measure.Place(PYTHON, octet, models, environment, arguments.nice)
    cells = measure_all(place, names, engines, thread_counts, arguments)
    run = {
        "machine": processor(),
        "cpu": arguments.cpu,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": [load, os.getloadavg()[0]],
        "octet": output(octet, "--version").strip(),
        "versions": (HERE / "requirements.txt").read_text().split(),
        "isa": sorted({c["isa"] for c in cells if "isa" in c}),
        "peak": peak(environment),
        "saturates": saturates,
        "engines": engine_names,
        "macs": {n: json.loads((models / f"{n}.json").read_text())["macs"] for n in names},
        "cells": cells,
    }
    run["verdicts"] = report.verdicts(report.Results(cells, engine_names), saturates)
    run["facts"] = facts(run, arguments)
    folder = TARGET if arguments.cpu == "native" else TARGET / arguments.cpu
    folder.mkdir(exist_ok=True)
    table = report.markdown(run, cells)
    (folder / "results.json").write_text(json.dumps(run, indent=1))
    (folder / "table.md").write_text(table)
    subprocess.run([PYTHON, HERE / "plot.py", folder / "results.json", folder / "latency.png"], check=True)
    say("\n" + table)
    say(f"Written: table.md, results.json and latency.png in {folder.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
