"""How far an INT8 model's first output is from the float model's. Prints one line of JSON.

    python judge.py FOLDER MODEL.onnx           in ONNX Runtime, exact mode
    python judge.py FOLDER MODEL.onnx OCTET     in Octet, the program of that path

FOLDER is what prepare.py wrote. Every sample is run alone in ONNX Runtime, so that ranges taken while running (its
dynamic quantization has one for the whole batch) are the sample's own. All sums go over all samples:

    sqnr_db     10 log10(sum x^2 / sum (x - xq)^2), x from the float model
    agreement   top1: share of samples with the float model's class; frames: share of values on the same side of the
                threshold; mask: intersection over union of what lies above it, of all samples together
    top1, float_top1    share of samples with the label's class; null without labels
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

SCORES = ["top1", "frames", "mask"]
# Samples that Octet runs at a time; its answers do not depend on it.
OCTET_BATCH = 16


def exact_session(path):
    """Without VNNI: products that cannot saturate, for activations and weights of 8 bits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def samples(inputs, whole_runs):
    """The inputs of one run after the other."""
    for n in range(len(next(iter(inputs.values())))):
        yield {k: v[n] if whole_runs else v[n : n + 1] for k, v in inputs.items()}


def run_onnx_runtime(session, inputs, whole_runs):
    """The first output, samples along a first dimension."""
    first = [session.get_outputs()[0].name]
    found = [session.run(first, one)[0] for one in samples(inputs, whole_runs)]
    return np.stack(found) if whole_runs else np.concatenate(found)


def run_octet(octet, model, inputs, whole_runs, first):
    """The same by Octet; a whole run is a process."""
    with tempfile.TemporaryDirectory() as folder:
        given, got = f"{folder}/in.npz", f"{folder}/out.npz"

        def run(arrays, *more):
            np.savez(given, **arrays)
            done = subprocess.run([octet, "run", model, "--inputs", given, "--output", got, *more],
                                  capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"octet run: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
            with np.load(got) as z:
                return z[first]

        if whole_runs:
            return np.stack([run(one) for one in samples(inputs, True)])
        return run(inputs, "--batch", str(OCTET_BATCH))


def agreement(score, threshold, x, xq):
    if score == "top1":
        return float((x.argmax(-1) == xq.argmax(-1)).mean())
    a, b = x > threshold, xq > threshold
    if score == "frames":
        return float((a == b).mean())
    either = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / either if either else 1.0


def compare(facts, x, xq, labels):
    if x.shape != xq.shape:
        sys.exit(f"the first output has shape {xq.shape}, the float model's {x.shape}")
    if not np.isfinite(xq).all():
        sys.exit("the first output has values that are no numbers")
    wide, noise = x.astype(np.float64), x.astype(np.float64) - xq
    right = lambda y: None if labels is None else float((y.argmax(-1) == labels).mean())
    # A copy of the float model has no noise; 200 dB is less than half a bit of f64.
    ratio = max((noise**2).sum() / (wide**2).sum(), 1e-20)
    return {"sqnr_db": float(-10 * np.log10(ratio)), "agreement": agreement(facts["score"], facts["threshold"], x, xq),
            "top1": right(xq), "float_top1": right(x)}


def main():
    folder, model, *octet = sys.argv[1:]
    folder = pathlib.Path(folder)
    facts = json.loads((folder / "facts.json").read_text())
    with np.load(folder / "eval.npz") as z:
        inputs = {k: z[k] for k in z.files}
    labels = inputs.pop("labels", None)
    x = np.load(folder / "float.npy")
    if octet:
        import onnx

        first = onnx.load(model).graph.output[0].name
        xq = run_octet(octet[0], model, inputs, facts["whole_runs"], first)
    else:
        xq = run_onnx_runtime(exact_session(model), inputs, facts["whole_runs"])
    print(json.dumps(compare(facts, x, xq, labels)))


if __name__ == "__main__":
    main()
