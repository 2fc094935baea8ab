"""Times engines that take turns: one process for each, all loaded, one running.

Each round gives every engine one burst of runs, in an order drawn anew, so that what else the machine does and how
its clock changes falls on all alike. A burst's first run is not counted: it finds the caches full of others' data.
"""

import dataclasses
import json
import os
import pathlib
import random
import statistics
import subprocess
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
# A worker that says nothing for so long is ended.
ANSWER_TIMEOUT_S = 900
WARMUP_RUNS = 3
BURST_RUNS_MAX = 500


@dataclasses.dataclass(frozen=True)
class Engine:
    """A program and the kind of file that it runs."""

    name: str
    # `octet`, or what worker.py calls it.
    program: str
    # Ending of the model file: float.onnx is NAME.onnx.
    file: str
    is_integer: bool = True

    @property
    def is_octet(self):
        return self.program == "octet"


ENGINES = [
    Engine("octet int8", "octet", ".octet.onnx"),
    Engine("octet w7", "octet", ".octet_w7.onnx"),
    Engine("octet qdq", "octet", ".static.onnx"),
    Engine("octet float", "octet", ".onnx", is_integer=False),
    Engine("ort int8", "ort", ".static.onnx"),
    Engine("ort int8 exact", "ort-exact", ".static.onnx"),
    Engine("ort dynamic", "ort", ".dynamic.onnx"),
    Engine("ort float", "ort", ".onnx", is_integer=False),
    Engine("openvino int8", "openvino", ".static.onnx"),
    Engine("openvino float", "openvino-float", ".onnx", is_integer=False),
]


class WorkerError(Exception):
    """An engine that did not answer; the last line of what it said."""


class Worker:
    """A process that runs one engine on one model when told to."""

    def __init__(self, command, environment, niceness):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            bufsize=1, start_new_session=True)
        self.prioritize(niceness)
        try:
            self.loaded = self.read()
        except WorkerError:
            self.close()
            raise

    def prioritize(self, niceness):
        """Asks for another priority; goes on without where that is not allowed."""
        if niceness == 0:
            return
        try:
            os.setpriority(os.PRIO_PROCESS, self.process.pid, niceness)
            # Where Linux groups processes by session, a priority counts within the session only; this is the group's.
            pathlib.Path(f"/proc/{self.process.pid}/autogroup").write_text(str(niceness))
        except OSError:
            pass

    def read(self):
        watchdog = threading.Timer(ANSWER_TIMEOUT_S, self.process.kill)
        watchdog.start()
        try:
            # Libraries print to standard output, too.
            while (line := self.process.stdout.readline()) and not line.startswith("{"):
                pass
        finally:
            watchdog.cancel()
        if not line:
            status = self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["said nothing"]
            raise WorkerError(f"ended with {status}: {said[-1][:200]}")
        return json.loads(line)

    def ask(self, order):
        try:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # What it said last is in `errors`: read() tells it.
        return self.read()

    def run(self, count):
        return self.ask(f"run {count}")["wall_ms"]

    def close(self):
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


@dataclasses.dataclass(frozen=True)
class Place:
    """Where things are, and how engines are started."""

    python: pathlib.Path
    octet: pathlib.Path
    models: pathlib.Path
    # What workers get on top of this process's environment.
    environment: dict
    niceness: int

    def whole_environment(self):
        return os.environ | self.environment

    def path(self, engine, model):
        return self.models / f"{model}{engine.file}"

    def command(self, engine, model, threads):
        path = self.path(engine, model)
        if engine.is_octet:
            return [self.octet, "bench", path, "--bursts", "--threads", str(threads)]
        inputs = self.models / f"{model}.input.npz"
        return [self.python, HERE / "worker.py", engine.program, path, inputs, str(threads)]

    def start(self, engine, model, threads):
        return Worker(self.command(engine, model, threads), self.whole_environment(), self.niceness)


def measure(place, model, threads, engines, rounds, burst_ms, seed):
    """A cell for each engine: {"model", "threads", "engine", and "error" or "min_ms", "median_ms", "p90_ms", ..}."""
    cells = {e: {"model": model, "threads": threads, "engine": e.name} for e in engines}
    workers, times, runs = {}, {}, {}

    def attempt(engine, act):
        """Does it, or notes why not and takes the engine out."""
        try:
            return act()
        except WorkerError as error:
            cells[engine]["error"] = str(error)
            if worker := workers.pop(engine, None):
                worker.close()
            return None

    def warm_up(engine):
        worker = workers[engine] = place.start(engine, model, threads)
        fastest = min(worker.run(WARMUP_RUNS))
        times[engine], runs[engine] = [], max(1, min(BURST_RUNS_MAX, round(burst_ms / fastest)))

    def burst(engine):
        times[engine] += workers[engine].run(1 + runs[engine])[1:]

    def finish(engine):
        loaded = workers[engine].loaded
        cells[engine] |= workers[engine].ask("stat") | summary(times[engine])
        cells[engine] |= {k: loaded[k] for k in ("load_ms", "isa", "base_rss_bytes") if k in loaded}

    try:
        for engine in engines:
            attempt(engine, lambda: warm_up(engine))
        order = random.Random(seed)
        for _ in range(rounds):
            for engine in order.sample(list(workers), len(workers)):
                attempt(engine, lambda: burst(engine))
        for engine in list(workers):
            attempt(engine, lambda: finish(engine))
    finally:
        for worker in workers.values():
            worker.close()
    return list(cells.values())


def summary(times_ms):
    times_ms = sorted(times_ms)
    return {
        "runs": len(times_ms),
        "min_ms": times_ms[0],
        "median_ms": statistics.median(times_ms),
        "p90_ms": times_ms[round((len(times_ms) - 1) * 0.9)],
    }


def save_outputs(place, engine, model, threads, out):
    """Writes what the engine makes of the model's one input; gives None, or why it could not."""
    if engine.is_octet:
        inputs = place.models / f"{model}.input.npz"
        command = [place.octet, "run", place.path(engine, model), "--inputs", inputs, "--output", out,
                   "--threads", str(threads)]
        done = subprocess.run(command, env=place.whole_environment(), capture_output=True, text=True, check=False)
        return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1][:200]
    try:
        worker = place.start(engine, model, threads)
        try:
            worker.ask(f"save {out}")
        finally:
            worker.close()
    except WorkerError as error:
        return str(error)
    return None


def cosines(place, model, engines, threads):
    """{engine: cosine of its outputs with the float model's}; an engine that fails is left out."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for number, engine in enumerate(engines):
            path = str(pathlib.Path(folder) / f"{number}.npz")
            if save_outputs(place, engine, model, threads, path) is None:
                files[path] = engine.name
        if not files:
            return {}
        reference = place.models / f"{model}.reference.npz"
        found = subprocess.run([place.python, HERE / "cosine.py", reference, *files], check=True,
                               capture_output=True, text=True).stdout
    return {files[path]: value for path, value in json.loads(found).items()}
