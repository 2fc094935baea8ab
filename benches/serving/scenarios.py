"""What a table of throughput does not show: overload, swaps under load, canary, shadow, the cost of metrics, and an
outside judge. Each function gives lines to read and verdicts."""

import copy
import json
import statistics
import subprocess
import threading
import time
import urllib.request

import judge
import provide
import servers
from table import verdict


class Scene:
    """A server, load, and the files of a scenario."""

    def __init__(self, octet, load, arguments):
        self.octet, self.load, self.arguments = octet, load, arguments
        self.lines, self.verdicts = [], []

    def seconds(self, full):
        """So long, or a tenth with --quick; a whole number for wrk."""
        return max(2, full // 10) if self.arguments.quick else full

    def say(self, text):
        self.lines.append(text)
        provide.peers.say(f"  {text}")

    def judge(self, goal, measured, wanted, kept):
        self.verdicts.append(verdict(goal, measured, wanted, kept))
        provide.peers.say(f"  {goal}: {measured} (wanted: {wanted}): {'yes' if kept else 'NO'}")

    def body(self, model, encoding="binary", batch=1):
        """A request for so many samples: the path of its body, its headers."""
        model = copy.copy(model)
        model.name, model.shape = f"{model.name}-{batch}", [batch, *model.shape[1:]]
        return provide.bodies(model, self.arguments.out / "bodies")[encoding]

    def metrics(self):
        """Samples of /metrics: {name and labels: value}."""
        text = self.octet.request("GET", "/metrics")[2].decode()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")}

    def sum(self, name, **labels):
        return sum(v for k, v in self.metrics().items()
                   if k.partition("{")[0] == name and all(f'{n}="{w}"' in k for n, w in labels.items()))


def run(name, binary, load, arguments):
    settings = ["serving.queue_limit=64"] if name == "overload" else []
    if name == "perf_analyzer":
        return judge.run(binary, arguments)
    with servers.Octet(binary, arguments.port, arguments.out, settings) as octet:
        scene = Scene(octet, load, arguments)
        globals()[name](scene)
    return {"lines": scene.lines, "verdicts": scene.verdicts}


def overload(scene):
    """Five times what the server can do, for a minute, of a model that computes long for few bytes: a client on the same
    cores can ask for that much."""
    octet, model = scene.octet, provide.models(["heavy"])["heavy"]
    octet.quantize(model, "full")
    path, headers = scene.body(model)
    url = "/v2/models/full/infer"
    scene.load.run(octet.url(url), path, headers, 16, 2)
    unloaded = scene.load.run(octet.url(url), path, headers, 16, scene.seconds(10))
    capacity = unloaded["requests"] / unloaded["seconds"]
    limit = 64
    queue_ms = limit / capacity * 1e3
    scene.say(f"capacity {capacity:.0f} requests/s; {limit} waiting ones take {queue_ms:.0f} ms")
    body = path.read_bytes()
    lines = {"Host": f"127.0.0.1:{octet.port}", "Content-Length": str(len(body))} | headers
    head = f"POST {url} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    request = scene.arguments.out / "overload.request"
    request.write_bytes(head.encode() + body)
    before = octet.rss_bytes()
    seconds = scene.seconds(60)
    process = subprocess.Popen([provide.openloop(), str(octet.port), request, str(5 * capacity), str(seconds)],
                               stdout=subprocess.PIPE, text=True)
    resident = []
    while process.poll() is None:
        time.sleep(0.5)
        resident.append(octet.rss_bytes())
    found = json.loads(process.stdout.read())
    (scene.arguments.out / "overload.json").write_text(json.dumps(found, indent=1))
    offered = found["sent"] / found["seconds"]
    statuses = found["statuses"]
    accepted, refused = statuses.get("200"), statuses.get("429")
    scene.say(f"offered {offered:.0f}/s for {found['seconds']:.0f} s ({offered / capacity:.1f}x), "
              + ", ".join(f"{v['count']} got {k} (p50 {v['p50_ms']:.1f} ms)" for k, v in sorted(statuses.items()))
              + f"; the client was late by {found['late_ms']['p99_ms']:.1f} ms (p99; at most "
              f"{found['late_ms']['max_ms']:.0f}), which counts in all latencies; {found['connections']} connections")
    scene.judge("p99 of accepted requests", f"{accepted['p99_ms']:.0f} ms", f"under {2 * queue_ms:.0f} ms",
                accepted["p99_ms"] < 2 * queue_ms)
    if refused:
        scene.judge("p99 of refusals (429)", f"{refused['p99_ms']:.1f} ms", "10 ms", refused["p99_ms"] <= 10)
    others = sum(v["count"] for k, v in statuses.items() if k not in ("200", "429")) + found["unanswered"]
    scene.judge("answers that are neither 200 nor 429", f"{others}", "0", others == 0)
    third = max(1, len(resident) // 3)
    first, last = statistics.median(resident[:third]), statistics.median(resident[-third:])
    scene.judge("memory: last third against the first of the overload",
                f"{first / 1e6:.0f} to {last / 1e6:.0f} MB ({before / 1e6:.0f} MB before)", "at most 5 % more",
                last <= first * 1.05)


def swap(scene):
    """Changes of what an endpoint serves, a hundred times, while clients ask it."""
    octet, model = scene.octet, provide.models(["mlp"])["mlp"]
    _, artifact = octet.quantize(model, "swap")
    octet.call("PUT", "/v1/endpoints/other", {"artifact": artifact})
    path, headers = scene.body(model)
    times = 10 if scene.arguments.quick else 100
    # The first changes fill pools and caches; growth counts from there.
    turn = [{"model": model.name}, {"artifact": artifact}]

    def change(count):
        for i in range(count):
            octet.call("PUT", "/v1/endpoints/swap", turn[i % 2])

    def reload(count):
        for _ in range(count):
            octet.call("POST", "/v2/repository/models/other/unload", {})
            octet.call("POST", "/v2/repository/models/other/load", {})

    scene.load.run(octet.url("/v2/models/swap/infer"), path, headers, 8, 2)
    change(times // 10)
    reload(times // 10)
    time.sleep(1)
    before = octet.rss_bytes()
    for what, act in (("PUT /v1/endpoints", change), ("unload and load of another endpoint", reload)):
        refused = broken = requests = 0
        worker = threading.Thread(target=act, args=(times,))
        begun = time.monotonic()
        worker.start()
        while worker.is_alive():
            got = scene.load.run(octet.url("/v2/models/swap/infer"), path, headers, 8, 2)
            refused, broken, requests = refused + got["refused"], broken + got["broken"], requests + got["requests"]
        took = time.monotonic() - begun
        scene.judge(f"{times} times {what} in {took:.1f} s: requests that failed",
                    f"{refused + broken} of {requests}", "0", refused + broken == 0 and requests > 0)
    time.sleep(2)
    after = octet.rss_bytes()
    versions = len(octet.call("GET", "/v1/endpoints/swap")["versions"])
    scene.judge(f"memory after all changes ({versions} versions in the catalog)",
                f"{before / 1e6:.1f} to {after / 1e6:.1f} MB", "within 10 %", after <= before * 1.1)


def put_new(octet, endpoint, value):
    """PUT of an endpoint with fields that an older server does not know."""
    try:
        return octet.call("PUT", f"/v1/endpoints/{endpoint}", value)
    except RuntimeError as error:
        if ": 400 " in str(error) or ": 422 " in str(error):
            raise RuntimeError(f"this server does not take {json.dumps(value)}: {error}") from None
        raise


def canary(scene):
    """A second version gets five per cent."""
    octet, model = scene.octet, provide.models(["mlp"])["mlp"]
    octet.serve_float(model, "canary")
    _, artifact = octet.quantize(model, "canary-int8")
    put_new(octet, "canary", {"artifact": artifact, "weight": 5})
    shown = octet.call("GET", "/v1/endpoints/canary")
    scene.say("weights: " + ", ".join(f"version {v['version']} {v.get('weight')}" for v in shown["versions"]))
    path, headers = scene.body(model)
    before = [scene.sum("octet_inference_requests_total", endpoint="canary", version=v) for v in (1, 2)]
    got = scene.load.run(octet.url("/v2/models/canary/infer"), path, headers, 16, scene.seconds(10))
    after = [scene.sum("octet_inference_requests_total", endpoint="canary", version=v) for v in (1, 2)]
    old, new = (a - b for a, b in zip(after, before, strict=True))
    share = new / max(1, old + new)
    scene.judge("share of the version with weight 5", f"{share:.2%} of {old + new:.0f} requests", "5 % +- 1",
                abs(share - 0.05) < 0.01)
    scene.judge("requests that failed", f"{got['refused'] + got['broken']}", "0", got["refused"] + got["broken"] == 0)
    octet.call("PUT", "/v1/endpoints/canary", {"routes": [{"version": 1, "weight": 0}, {"version": 2, "weight": 100}]})
    before = scene.sum("octet_inference_requests_total", endpoint="canary", version=1)
    scene.load.run(octet.url("/v2/models/canary/infer"), path, headers, 16, 2)
    stray = scene.sum("octet_inference_requests_total", endpoint="canary", version=1) - before
    scene.judge("requests to the old version after promotion", f"{stray:.0f}", "0", stray == 0)


def shadow(scene):
    """A tenth of the requests also runs in float; the others must not feel it."""
    octet, model = scene.octet, provide.models(["resnet8"])["resnet8"]
    octet.quantize(model, "shadow")
    path, headers = scene.body(model)
    url = octet.url("/v2/models/shadow/infer")
    scene.load.run(url, path, headers, 4, 1)
    rates, tails = {0: [], 0.1: []}, {0: [], 0.1: []}
    requests = 0
    for _ in range(3):
        for fraction in rates:
            put_new(octet, "shadow", {"shadow": {"fraction": fraction}})
            got = scene.load.run(url, path, headers, 4, scene.seconds(5))
            rates[fraction].append(got["requests"] / got["seconds"])
            tails[fraction].append(got["p99_ms"])
            requests += got["requests"] if fraction else 0
    time.sleep(1)
    compared = scene.sum("octet_shadow_comparisons_total", endpoint="shadow")
    skipped = scene.sum("octet_shadow_comparisons_total", endpoint="shadow", outcome="skipped")
    plain, shadowed = (statistics.median(rates[f]) for f in rates)
    scene.say(f"{plain:.0f} requests/s without, {shadowed:.0f} with ({shadowed / plain - 1:+.1%}); p99 "
              f"{statistics.median(tails[0]):.2f} and {statistics.median(tails[0.1]):.2f} ms; "
              f"{skipped:.0f} comparisons skipped because the server was busy")
    scene.judge("comparisons of the requests", f"{compared / max(1, requests):.1%}", "10 % +- 2",
                abs(compared / max(1, requests) - 0.1) < 0.02)
    shown = octet.call("GET", "/v1/endpoints/shadow")["versions"][-1].get("shadow")
    scene.say(f"the endpoint says {json.dumps(shown)}")


def metrics_cost(scene):
    """Throughput while /metrics is read every second against not at all."""
    octet, model = scene.octet, provide.models(["mlp"])["mlp"]
    octet.quantize(model, "busy")
    for i in range(20):
        octet.call("PUT", f"/v1/endpoints/idle{i}", {"model": model.name})
    path, headers = scene.body(model)
    url = octet.url("/v2/models/busy/infer")
    scene.load.run(url, path, headers, 16, 2)
    rates, scrapes = {"no": [], "yes": []}, []
    for _ in range(5):
        for scraped in rates:
            stop = threading.Event()

            def scrape(stop=stop):
                while not stop.wait(1):
                    begun = time.perf_counter()
                    with urllib.request.urlopen(octet.url("/metrics"), timeout=10) as answer:
                        size = len(answer.read())
                    scrapes.append((time.perf_counter() - begun, size))

            thread = threading.Thread(target=scrape)
            if scraped == "yes":
                thread.start()
            got = scene.load.run(url, path, headers, 16, scene.seconds(10))
            stop.set()
            if scraped == "yes":
                thread.join()
            rates[scraped].append(got["requests"] / got["seconds"])
    plain, scraped = statistics.median(rates["no"]), statistics.median(rates["yes"])
    scene.say(f"{plain:.0f} requests/s without and {scraped:.0f} with a scrape a second, medians of 5 turns each; a "
              f"scrape takes {statistics.median(s for s, _ in scrapes) * 1e3:.1f} ms for "
              f"{scrapes[-1][1] / 1000:.0f} kB ({len(scene.metrics())} series, 21 endpoints)")
    scene.say("counting itself cannot be turned off: its cost is a part of every figure here, the p50 of the empty "
              "model above all")
    scene.judge("throughput lost to scraping", f"{1 - scraped / plain:.1%}", "at most 2 %", scraped >= 0.98 * plain)
