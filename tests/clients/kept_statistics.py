"""What calibration found out outlives the data: order leaves no trace, a later job needs no samples, files go."""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import support

MODEL = "fm_resnet8"
NEAREST = {"rounding": "nearest", "bias_correction": False}


def quantize(binary, folder, name, recipe, *flags):
    """Quantizes; the artifact, the report's folder."""
    artifact, report, recipe_path = folder / f"{name}.onnx", folder / name, folder / f"{name}.json"
    recipe_path.write_text(json.dumps(recipe))
    support.run_octet(binary, "quantize", support.model_path(MODEL), "-o", artifact, "--report", report,
                      "--recipe", recipe_path, *flags)
    return artifact.read_bytes(), report


def shuffled(folder):
    """The calibration samples in another order."""
    with np.load(support.calibration_path(MODEL)) as z:
        arrays = {name: z[name] for name in z.files}
    count = max(len(a) for a in arrays.values() if a.ndim)
    order = np.random.default_rng(0).permutation(count)
    path = folder / "shuffled.npz"
    np.savez(path, **{name: a[order] if a.ndim and len(a) == count else a for name, a in arrays.items()})
    return path


def check_the_order_of_samples_and_the_number_of_threads_leave_no_trace(binary):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        made = []
        for name, path, threads in [("a", support.calibration_path(MODEL), 1), ("b", shuffled(folder), 2)]:
            artifact, report = quantize(binary, folder, name, NEAREST, "--calibration", path, "--threads", threads)
            made.append((artifact, (report / "statistics.bin").read_bytes()))
        assert made[0] == made[1], "artifact and statistics depend on order or threads"
        return f"{len(made[0][1])} bytes of statistics"


def check_every_range_method_works_from_statistics_alone(binary):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        calibration = ("--calibration", support.calibration_path(MODEL))
        evaluation = ("--evaluation", support.EVALUATION_PATH)
        _, report = quantize(binary, folder, "first", NEAREST, *calibration)
        statistics = report / "statistics.bin"
        artifacts = set()
        for ranges in ("minmax", "mean_minmax", {"percentile": 99.99}, "entropy", "mse"):
            recipe = NEAREST | {"ranges": ranges}
            want, _ = quantize(binary, folder, "want", recipe, *calibration, *evaluation)
            got, again = quantize(binary, folder, "got", recipe, "--statistics", statistics, *evaluation)
            assert got == want, f"{ranges}: statistics give another artifact than the samples"
            assert (again / "statistics.bin").read_bytes() == statistics.read_bytes()
            accuracy = json.loads((again / "report.json").read_text())["evaluation"]
            assert accuracy["agreement"]["value"] > 0.9, (ranges, accuracy["agreement"])
            artifacts.add(hashlib.sha256(got).digest())
        assert len(artifacts) == 5, "two methods chose the same ranges everywhere"
        # The default recipe does without what needs samples, and says so.
        _, report = quantize(binary, folder, "default", {}, "--statistics", statistics, *evaluation)
        notes = json.loads((report / "report.json").read_text())["notes"]
        assert any("nearest" in note for note in notes), notes

        def refused(says, *flags):
            command = [binary, "quantize", support.model_path(MODEL), "-o", folder / "no.onnx", *flags]
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
            assert done.returncode != 0 and says in done.stderr, done

        refused("--calibration")
        refused("hold no samples", "--statistics", statistics)
        cut = folder / "cut.bin"
        cut.write_bytes(statistics.read_bytes()[:-100])
        refused("not a file of statistics", "--statistics", cut, *evaluation)
        refused("not a file of statistics", "--statistics", support.calibration_path(MODEL), *evaluation)


def check_a_dry_run_predicts_the_artifact(binary):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for model in support.MODELS:
            report = folder / model
            support.run_octet(binary, "quantize", support.model_path(model), "--dry-run", "--report", report)
            plan = json.loads((report / "dry_run.json").read_text())
            artifact = folder / f"{model}.onnx"
            support.run_octet(binary, "quantize", support.model_path(model), "-o", artifact,
                              "--calibration", support.calibration_path(model))
            size = artifact.stat().st_size
            # Smoothing, which only data decide on, gives values longer names.
            assert abs(plan["artifact_bytes"] - size) < max(200, 0.01 * size), (model, plan["artifact_bytes"], size)
            assert plan["integer"] and 0 < plan["integer_share"] <= 1, (model, plan["integer_share"])


def check_nothing_of_a_sample_is_left(server):
    """A job deletes its calibration data: row and blob, and no file of the server nor its log has a marked sample.

    The least and the largest value of all samples stay in the statistics and in the report; the mark is neither.
    """
    mark = np.array([0.12345679, 0.9876543], np.float32)
    with np.load(support.calibration_path(MODEL)) as z:
        samples = next(z[n] for n in z.files if z[n].ndim == 4)[:16].astype(np.float32)
    samples[3, 0, 0, :2] = mark
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "marked.npy"
        np.save(path, samples)
        raw = path.read_bytes()
    server.put("/v1/models/marked", support.model_path(MODEL))
    server.put("/v1/datasets/marked-eval", support.EVALUATION_PATH)
    assert server.put("/v1/datasets/marked", raw).status == 201
    digest = server.get("/v1/datasets/marked").json()["sha256"]

    def found():
        files = [p for p in server.data_dir.rglob("*") if p.is_file()] + [server.log_path]
        return [p for p in files if p.parent.name + p.name == digest or mark.tobytes() in p.read_bytes()]

    assert found(), "the search finds what is there"
    job = server.wait(server.submit(model="marked", calibration="marked", evaluation="marked-eval"))
    assert job["state"] == "succeeded", job
    assert [d["dataset"] for d in job["deleted"]] == ["marked@1"], job["deleted"]
    assert server.get("/v1/datasets/marked").status == 404
    server.until(lambda: not found(), "the sample is gone from every file")
    again = server.wait(server.submit(model="marked", calibration_of=job["id"], recipe={"ranges": "mse"}))
    assert again["state"] == "succeeded", again


if __name__ == "__main__":
    support.main(sys.modules[__name__])
