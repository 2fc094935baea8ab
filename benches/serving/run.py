#!/usr/bin/env python3
"""Measures Octet over HTTP against FastAPI, LitServe and MLServer: sets up everything, measures, writes a table.

    python3 benches/serving/run.py [--octet PATH] [--only mlp,resnet8,...] [--rounds 3] [--seconds 3]
    python3 benches/serving/run.py --only overload,swap,canary,shadow,metrics_cost,perf_analyzer

README.md tells what is measured and how to read it. Needs Python 3.11 and, without wrk, Debian's apt-get.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys

import compare
import load
import provide
import servers
import table

SCENARIOS = ["overload", "swap", "canary", "shadow", "metrics_cost", "perf_analyzer"]


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--octet", type=pathlib.Path, metavar="PATH", help="this program instead of a build")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", default=provide.TARGET / "results",
                        help="results; what is there of other models stays [default: target/serving/results]")
    parser.add_argument("--only", metavar="A,B", default=",".join(compare.PLAN),
                        help=f"of {', '.join([*compare.PLAN, *SCENARIOS])} [default: all models, no scenario]")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="[default: 3]")
    parser.add_argument("--seconds", type=int, default=3, metavar="S", help="of each measurement [default: 3]")
    parser.add_argument("--encodings", metavar="A,B", default="json,binary,shared", help="[default: json,binary,shared]")
    parser.add_argument("--peers", metavar="A,B", default=",".join(compare.WORKERS), help="[default: all]")
    parser.add_argument("--float", action="store_true", help="all serve the float models")
    parser.add_argument("--port", type=int, default=18200, metavar="P", help="this and the next 99 [default: 18200]")
    parser.add_argument("--quick", action="store_true", help="scenarios: a tenth of the time, to see that they work")
    arguments = parser.parse_args()
    arguments.only = provide.peers.chosen([*compare.PLAN, *SCENARIOS], arguments.only, "--only")
    arguments.encodings, arguments.peers = arguments.encodings.split(","), arguments.peers.split(",")
    return arguments


def kept(path):
    """Earlier results in this folder."""
    if path.exists():
        return json.loads(path.read_text())
    return {"models": {}, "scenarios": {}, "facts": [], "verdicts": []}


def publish(results, arguments, version, at):
    at["load_after"] = os.getloadavg()[0]
    results["facts"] = table.facts(arguments, version, provide.peers.processor(), at)
    results["verdicts"] = table.verdicts(results)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
    text = table.tables(results)
    (arguments.out / "table.md").write_text(text)
    return text


def main():
    arguments = parse()
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    binary = arguments.octet.resolve() if arguments.octet else provide.peers.build_octet()
    version = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    names = [n for n in arguments.only if n in compare.PLAN]
    scenarios = [n for n in arguments.only if n in SCENARIOS]
    for peer in {p for n in names for p in compare.PLAN[n][0]} & set(arguments.peers):
        provide.environment(peer)
    at = {"time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"), "load_before": os.getloadavg()[0]}
    loader = load.Load()
    results, failures = kept(arguments.out / "results.json"), []
    if names:
        models = provide.models(names)
        with servers.Octet(binary, arguments.port, arguments.out) as octet:
            octet.pause()
            for name in names:
                provide.peers.say(f"Measuring {name}")
                key = f"{name} float" if arguments.float and name not in ("image", "empty") else name
                try:
                    results["models"][key] = compare.one_model(models[name], octet, loader, arguments, arguments.out)
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    failures.append(f"{name}: {error}")
                    continue
                failures += [f"{name}: {peer}: {why}" for peer, why in results["models"][key]["failed"].items()]
                publish(results, arguments, version, at)  # What is measured is kept if the next one breaks.
    for name in scenarios:
        provide.peers.say(f"Scenario {name}")
        import scenarios as scenes
        try:
            results["scenarios"][name] = scenes.run(name, binary, loader, arguments)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            failures.append(f"{name}: {error}")
            continue
        publish(results, arguments, version, at)
    print(publish(results, arguments, version, at))
    for failure in failures:
        print(f"NOT RUN  {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
