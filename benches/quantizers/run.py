#!/usr/bin/env python3
"""Compares Octet's quantizer with ONNX Runtime's: accuracy on trained models, time and memory on ResNet-50.

    python3 benches/quantizers/run.py --zoo DIR [--models a,b] [--octet PATH] [--recipe FILE]
    python3 benches/quantizers/run.py --cost [--images 64,256] [--octet PATH]

README.md tells what is measured and how to read it. Needs Python 3.11, and the Rust toolchain without --octet.
"""

import argparse
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Its run.py sets up Python and builds Octet; this file is `__main__`, so the name is free.
sys.path.insert(0, str(ROOT / "benches/peers"))
import run as peers

import accuracy
import cost
import tables

TARGET = ROOT / "target/quantizers"


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=pathlib.Path, metavar="DIR", help="trained models: compares accuracy on them")
    parser.add_argument("--cost", action="store_true", help="measures time and memory on ResNet-50")
    parser.add_argument("--octet", type=pathlib.Path, metavar="PATH", help="this program instead of a build")
    parser.add_argument("--models", metavar="A,B", help="only these of the zoo [default: all]")
    parser.add_argument("--recipe", type=pathlib.Path, metavar="FILE", help="Octet's recipe [default: the defaults]")
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="at most so many evaluation samples")
    parser.add_argument("--operators", metavar="A,B", default="products,default",
                        help="ONNX Runtime's lists of operators, `fused` too [default: products,default]")
    parser.add_argument("--baseline", action="store_true", help="ONNX Runtime's side only")
    parser.add_argument("--images", metavar="N,M", default="64,256", help="calibration images [default: 64,256]")
    parser.add_argument("--limit-gib", type=int, default=cost.LIMIT_GIB, metavar="N",
                        help=f"address space of a quantizer for --cost [default: {cost.LIMIT_GIB}]")
    parser.add_argument("--only", metavar="A,B", help="only these quantizers of --cost")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", default=TARGET, help="[default: target/quantizers]")
    arguments = parser.parse_args()
    if not arguments.zoo and not arguments.cost:
        parser.error("say --zoo DIR, --cost or both")
    return arguments


def main():
    arguments = parse()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    peers.set_up_python(HERE / "requirements.txt", TARGET / "venv")
    python = TARGET / "venv/bin/python"
    octet = None
    if not arguments.baseline:
        octet = arguments.octet.resolve() if arguments.octet else peers.build_octet()
    failures = []
    if arguments.zoo:
        names = peers.chosen(accuracy.MODELS, arguments.models, "--models")
        recipe = arguments.recipe.resolve() if arguments.recipe else None
        zoo = arguments.zoo.resolve()
        operators = peers.chosen(list(accuracy.OPERATORS), arguments.operators, "--operators")
        comparison = accuracy.Accuracy(python, zoo, out, octet, recipe, arguments.samples, operators)
        found = accuracy.compare(comparison, names)
        failures += publish(out, "accuracy", found, tables.accuracy(found))
    if arguments.cost:
        counts = [int(n) for n in arguments.images.split(",")]
        found = cost.measure(python, octet, out / "cost", counts, arguments.limit_gib, arguments.only)
        failures += publish(out, "cost", found, tables.cost(found))
    for failure in failures:
        print(f"NOT RUN  {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


def publish(out, name, found, made):
    """Writes results and table; gives what did not run."""
    table, failures = made
    (out / f"{name}.json").write_text(json.dumps(found, indent=1))
    (out / f"{name}.md").write_text(table)
    peers.say(f"\n{table}")
    return failures


if __name__ == "__main__":
    main()
