"""Requests a second and latency of every server on one model at a time, in rounds that take turns."""

import contextlib
import json
import math
import os
import statistics
import struct

import provide
import servers

WHO = ["octet", "fastapi", "litserve", "mlserver"]
# Model: (who runs, encodings, connections).
PLAN = {
    "mlp": (WHO, ["json", "binary"], [1, 16, 64]),
    "resnet8": (WHO, ["json", "binary"], [1, 16, 64]),
    "image": (["octet", "fastapi"], ["json", "binary", "shared"], [1]),
    "empty": (["octet", "fastapi"], ["json", "binary"], [1]),
    "mobilenetv2": (["octet", "fastapi"], ["binary", "shared"], [1, 16]),
    "resnet18": (["octet", "fastapi"], ["binary", "shared"], [1, 16]),
}
# Who takes what. Shared memory is Triton's; of those here only Octet has it.
TAKES = {"json": set(WHO), "binary": {"octet", "fastapi"}, "shared": {"octet"}}
# Processes of a peer that compute. MLServer's 0 is its own process; with a pool of two it was slower.
WORKERS = {"fastapi": 2, "litserve": 2, "mlserver": 0}
COSINE_MIN = 0.999
WARM_UP_S = 1


def outputs(answer, headers):
    """The numbers of the first output of an answer."""
    size = headers.get("inference-header-content-length")
    if size is None:
        data = json.loads(answer)["outputs"][0]["data"]
        return [float(v) for v in data]
    raw = answer[int(size):]
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def cosine(a, b):
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else float(a == b)


def first_answers(running, urls, bodies, encodings):
    """Asks each server once; gives the cosine of its answer with Octet's."""
    found, reference = {}, None
    for name, server in running.items():
        with server.running():
            for encoding in encodings:
                if name not in TAKES[encoding]:
                    continue
                path, headers = bodies[encoding]
                status, got, body = server.request("POST", urls[name], path.read_bytes(), headers)
                if status != 200:
                    raise RuntimeError(f"{name}, {encoding}: {status} {body[:300]}")
                values = outputs(body, got)
                reference = reference or values
                found[f"{name} {encoding}"] = cosine(values, reference)
    return found


def median_cell(samples):
    """One cell from its rounds: medians, and the spread of requests a second."""
    rates = [s["requests"] / s["seconds"] for s in samples]
    cell = {key: statistics.median(s[key] for s in samples) for key in ("p50_ms", "p99_ms", "max_ms")}
    return cell | {"rps": statistics.median(rates), "rps_min": min(rates), "rps_max": max(rates),
                   "errors": sum(s["refused"] + s["broken"] for s in samples), "rounds": samples}


def one_model(model, octet, load, arguments, out):
    """All cells of a model; `octet` runs and is paused."""
    who, encodings, connections = PLAN[model.name]
    encodings = [e for e in encodings if e in arguments.encodings]
    precision = "fp32" if arguments.float or model.calibration is None else "int8"
    bodies = provide.bodies(model, out / "bodies")
    with contextlib.ExitStack() as stack:
        with octet.running():
            endpoint = f"{model.name}-{precision}"
            file = octet.quantize(model, endpoint)[0] if precision == "int8" else octet.serve_float(model, endpoint)
        running, failed = {"octet": octet}, {}
        for i, name in enumerate(n for n in who if n != "octet" and n in arguments.peers):
            try:
                server = stack.enter_context(getattr(servers, name)(file, arguments.port + 10 * (i + 1), out,
                                                                    WORKERS[name]))
            except (RuntimeError, OSError) as error:
                failed[name] = str(error)
                provide.peers.say(f"  NOT RUN {name}: {error}")
                continue
            server.pause()
            running[name] = server
        if "shared" in encodings:
            with octet.running():
                stack.enter_context(octet.shared_memory(out / "bodies" / f"{model.name}.tensor"))
        urls = {n: f"/v2/models/{endpoint if n == 'octet' else 'm'}/infer" for n in running}
        agreement = first_answers(running, urls, bodies, encodings)
        cells, benches = {}, {}
        cores = os.cpu_count()
        with octet.running():
            pass  # Its job is over; what it writes behind it is written now.
        for round_ in range(arguments.rounds):
            # Each round begins with another server, so that none always comes first.
            order = list(running)[round_ % len(running):] + list(running)[:round_ % len(running)]
            for batch, threads in sorted({(1, 1), (1, cores), (8, cores)}):
                timed = servers.octet_bench(octet.binary, file, batch, threads, min(1, arguments.seconds / 3))
                benches.setdefault(f"batch {batch} threads {threads}", []).append(timed["median_ms"])
            for count in connections:
                for encoding in encodings:
                    for name in order:
                        if name not in TAKES[encoding]:
                            continue
                        server, (body, headers) = running[name], bodies[encoding]
                        with server.running():
                            url = server.url(urls[name])
                            if round_ == 0:
                                load.run(url, body, headers, count, WARM_UP_S)
                            got = load.run(url, body, headers, count, arguments.seconds)
                            got["rss_bytes"] = server.rss_bytes()
                        cells.setdefault((name, encoding, count), []).append(got)
            provide.peers.say(f"  {model.name}: round {round_ + 1} of {arguments.rounds}")
        found = []
        for (name, encoding, count), samples in cells.items():
            found.append({"server": name, "encoding": encoding, "connections": count} | median_cell(samples) |
                         {"rss_bytes": samples[-1]["rss_bytes"], "cosine": agreement[f"{name} {encoding}"]})
        return {
            "precision": precision, "cells": found, "failed": failed,
            "body_bytes": {e: bodies[e][0].stat().st_size for e in encodings},
            "bench_ms": {k: statistics.median(v) for k, v in benches.items()},
            "start_s": {n: s.start_s for n, s in running.items()},
        }
