"""Accuracy of Octet's quantizer and of ONNX Runtime's on trained models: runs both, judges all files alike.

What ONNX Runtime's quantizer makes does not change between runs, so its figures are kept in baseline.json and are
made again only if the model, its data or the scripts beside this one are newer or other.
"""

import dataclasses
import hashlib
import json
import pathlib
import resource
import shutil
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
MODELS = ["fm_mlp", "fm_lenet", "fm_resnet8", "fm_mbv2", "fm_vit", "spam_transformer", "ppocr_cls", "silero_vad",
          "magika", "efficientnet_lite0", "ppocr_det"]
# Lists of operators that ONNX Runtime's quantizer is told; `default` is its own.
OPERATORS = {"products": "Conv,Gemm,MatMul", "default": None, "fused": "Conv,Gemm,MatMul,Relu,Clip"}
METHODS = ["minmax", "percentile", "entropy", "dynamic"]
# Address space of a quantizer. It is more than what the process holds, by about 1 GiB here.
LIMIT_GIB = 9
# Where the histograms of all samples at once do not fit: so many at a time.
STRIDE = 4
# What a process that found no memory says or ends with.
OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "Failed to allocate", "Unable to allocate", "out of memory")
TIMEOUT_S = 3600


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to call ONNX Runtime's quantizer."""

    method: str
    # A key of OPERATORS.
    operators: str
    per_channel: bool = True

    @property
    def name(self):
        return f"{self.method} {self.operators}{'' if self.per_channel else ' per-tensor'}"

    def arguments(self):
        listed = OPERATORS[self.operators]
        more = ["--operators", listed] if listed else []
        return [self.method, *more, *([] if self.per_channel else ["--per-tensor"])]


class Failure(Exception):
    """A step that did not work: the last line of what it said."""


def say(text):
    print(text, flush=True)


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_GIB << 30,) * 2)


def last_line(text):
    return (text.strip().splitlines() or ["no reason given"])[-1][:300]


def run(folder, *command, limited=False):
    """What a command prints. It runs in a folder of ours: ONNX Runtime's tools leave files in theirs."""
    try:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=folder,
                              timeout=TIMEOUT_S, preexec_fn=limit_memory if limited else None)
    except subprocess.TimeoutExpired:
        raise Failure(f"still running after {TIMEOUT_S} s") from None
    if done.returncode != 0:
        if limited and any(word in done.stderr for word in OUT_OF_MEMORY):
            raise MemoryError
        told = last_line(done.stderr) if done.returncode > 0 else f"ended by signal {-done.returncode}"
        raise Failure(told)
    return done.stdout


def digest(*paths):
    """Changes with what the files hold."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


class Accuracy:
    """The comparison, model by model; ONNX Runtime's figures are written after each variant."""

    def __init__(self, python, zoo, folder, octet, recipe, samples, operators):
        self.python, self.zoo, self.folder, self.octet, self.recipe = python, zoo, folder, octet, recipe
        self.samples, self.operators = samples, operators
        self.baseline_path = folder / "baseline.json"
        self.baseline = json.loads(self.baseline_path.read_text()) if self.baseline_path.exists() else {}

    def work(self, model):
        return self.folder / "models" / model

    def evaluation(self, model):
        own = self.zoo / model / "eval.npz"
        return own if own.exists() else self.zoo / "fashion_mnist/eval.npz"

    def key(self, model):
        """What a model's baseline depends on."""
        scripts = [HERE / f for f in ("prepare.py", "theirs.py", "judge.py", "requirements.txt")]
        data = [self.zoo / model / f for f in ("model.onnx", "calib.npz")]
        return f"{digest(*scripts, *data, self.evaluation(model))}-{self.samples}"

    def save(self):
        part = self.baseline_path.with_suffix(".part")
        part.write_text(json.dumps(self.baseline, indent=1))
        part.replace(self.baseline_path)

    def prepare(self, model):
        """Float model, data and reference; made again when the baseline is."""
        work, key = self.work(model), self.key(model)
        stamp = work / "key"
        if stamp.exists() and stamp.read_text() == key:
            return
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        run(work, self.python, HERE / "prepare.py", self.zoo, model, work, self.samples)
        stamp.write_text(key)

    def judge(self, model, file, *octet):
        work = self.work(model)
        return json.loads(run(work, self.python, HERE / "judge.py", work, file, *octet))

    def quantize_theirs(self, model, variant, out):
        """Gives how many samples it took, and at a time if that was a limit."""
        work = self.work(model)
        facts = json.loads((work / "facts.json").read_text())
        command = [self.python, HERE / "theirs.py", work / "prepared.onnx", work / "calib.npz", out,
                   *variant.arguments()]
        if facts["whole_runs"]:
            command.append("--whole-runs")
        try:
            said = run(work, *command, limited=True)
        except MemoryError:
            try:
                said = run(work, *command, "--stride", STRIDE, limited=True)
            except MemoryError:
                raise Failure(f"out of memory at {LIMIT_GIB} GiB, even with {STRIDE} samples at a time") from None
        return json.loads(said.strip().splitlines()[-1])

    def try_theirs(self, model, variant):
        out = self.work(model) / f"{variant.name.replace(' ', '_')}.onnx"
        row = {"variant": variant.name, "method": variant.method, "operators": variant.operators,
               "per_channel": variant.per_channel}
        start = time.monotonic()
        try:
            row |= self.quantize_theirs(model, variant, out)
            row["quantize_s"] = round(time.monotonic() - start, 1)
            row["bytes"] = out.stat().st_size
            row |= self.judge(model, out)
        except Failure as failure:
            row["error"] = str(failure)
        out.unlink(missing_ok=True)
        return row

    def theirs(self, model):
        """All variants of a model, from baseline.json if it is there; per tensor where per channel does not run."""
        key = self.key(model)
        known = self.baseline.get(model)
        if known is None or known["key"] != key:
            known = {"key": key, "facts": json.loads((self.work(model) / "facts.json").read_text()), "variants": []}
            self.baseline[model] = known
        rows = []
        for variant in [Variant(m, o) for o in self.operators for m in METHODS]:
            rows.append(self.row(known, model, variant))
            if "error" in rows[-1]:
                rows.append(self.row(known, model, dataclasses.replace(variant, per_channel=False)))
        return rows

    def row(self, known, model, variant):
        found = next((r for r in known["variants"] if r["variant"] == variant.name), None)
        if found is None:
            found = self.try_theirs(model, variant)
            known["variants"].append(found)
            self.save()
            told = found.get("error") or (f"{found['sqnr_db']:6.2f} dB, agreement {found['agreement']:.4f}, top-1 "
                                          f"{share(found['top1'])}, {found['quantize_s']} s")
            say(f"{model:20}ORT {variant.name:32}{told}")
        return found

    def ours(self, model):
        """{"octet": judged in Octet, "ort": judged in ONNX Runtime, "report": what Octet says, ..} or "error"."""
        work = self.work(model)
        out, report = work / "octet.onnx", work / "octet"
        evaluation = work / "eval.npz" if self.samples else self.evaluation(model)
        more = ["--recipe", self.recipe] if self.recipe else []
        # A program that is built anew meanwhile is another one.
        found, start = {"octet_sha256": digest(self.octet)}, time.monotonic()
        out.unlink(missing_ok=True)
        try:
            run(work, self.octet, "quantize", self.zoo / model / "model.onnx", "--calibration",
                self.zoo / model / "calib.npz", "--evaluation", evaluation, "--output", out, "--report", report, *more)
            found["quantize_s"] = round(time.monotonic() - start, 1)
            found["bytes"] = out.stat().st_size
            told = json.loads((report / "report.json").read_text())["evaluation"]
            found["report"] = {"sqnr_db": told["sqnr_db"], "agreement": told["agreement"]["value"]}
            found["octet"] = self.judge(model, out, self.octet)
            found["ort"] = self.judge(model, out)
        except Failure as failure:
            found["error"] = f"{'judging in ONNX Runtime' if 'octet' in found else 'Octet'}: {failure}"
        told = found.get("error") or (f"{found['octet']['sqnr_db']:6.2f} dB, agreement "
                                      f"{found['octet']['agreement']:.4f}, in ORT {found['ort']['sqnr_db']:6.2f} dB, "
                                      f"{found['quantize_s']} s")
        say(f"{model:20}Octet {'':30}{told}")
        return found


def share(value):
    return "-" if value is None else f"{value:.4f}"


def best(rows, field):
    """The variant with the most of it; None if none ran."""
    return max((r for r in rows if r.get(field) is not None), key=lambda r: r[field], default=None)


def compare(accuracy, models):
    """A result for each model: {"model", "variants", "octet"} or "error"."""
    results = []
    for model in models:
        result = {"model": model}
        try:
            accuracy.prepare(model)
            result["variants"] = accuracy.theirs(model)
            result["facts"] = accuracy.baseline[model]["facts"]
            if accuracy.octet:
                result["octet"] = accuracy.ours(model)
        except Failure as failure:
            result["error"] = str(failure)
            say(f"{model:20}{failure}")
        results.append(result)
    return results
