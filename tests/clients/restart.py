"""A job outlives the server: `kill -9` in the middle, start again, and it finishes as if nothing had been."""

import io
import json
import sys
import time

import numpy as np

import support


def many_samples():
    """The evaluation data three times over: each phase is told every half second, and shall be seen."""
    file = io.BytesIO()
    with np.load(support.EVALUATION_PATH) as arrays:
        samples = len(arrays["labels"])
        np.savez(file, **{k: np.concatenate([a] * 3) if a.shape[:1] == (samples,) else a for k, a in arrays.items()})
    return file.getvalue()


def finish_after_kill(binary, phase):
    """Kills the server as soon as the job is in `phase`."""
    with support.Server(binary) as server:
        # 30,000 samples where the kill shall hit, 256 in the other place.
        calibration, evaluation = support.calibration_path("fm_resnet8"), many_samples()
        if phase == "calibrate":
            calibration, evaluation = evaluation, calibration
        for path, file in [
            ("/v1/models/resnet8", support.model_path("fm_resnet8")),
            ("/v1/datasets/calib", calibration),
            ("/v1/datasets/eval", evaluation),
        ]:
            assert server.put(path, file).status in (200, 201)
        spec = {"model": "resnet8", "calibration": "calib", "evaluation": "eval", "endpoint": "resnet8",
                "keep": True}
        want = server.wait(server.submit(**spec))
        assert want["state"] == "succeeded", want
        artifact = server.download(want)

        job = server.submit(**spec)
        while True:
            state = server.job(job)
            if state["state"] == "running" and state["phase"] == phase:
                break
            assert state["state"] in ("queued", "running"), f"the job was over before the kill: {json.dumps(state)}"
            time.sleep(0.001)
        server.kill()
        server.start()
        # What was there before the kill is there after it.
        assert server.job(job)["state"] in ("queued", "running"), server.job(job)
        got = server.wait(job, timeout=180)
        assert got["state"] == "succeeded", json.dumps(got, indent=1)
        assert server.download(got) == artifact, "the job that was interrupted made another artifact"
        batch = support.images()[0][:4]
        assert server.infer("resnet8", "input", batch).shape == (4, 10), "the endpoint is back"
        assert got["attempt"] == 2, got


def check_a_job_killed_in_calibration_finishes(binary):
    finish_after_kill(binary, "calibrate")


def check_a_job_killed_in_evaluation_finishes(binary):
    finish_after_kill(binary, "evaluate")


def check_what_was_calibrated_is_not_calibrated_again(binary):
    """Killed after a calibration that took long: the next attempt begins behind it, and makes the same artifact."""
    with support.Server(binary) as server:
        for path, file in [("/v1/models/resnet8", support.model_path("fm_resnet8")),
                           ("/v1/datasets/calib", many_samples())]:
            assert server.put(path, file).status == 201
        spec = {"model": "resnet8", "calibration": "calib", "keep": True}
        began = time.monotonic()
        artifact = server.download(server.wait(server.submit(**spec)))
        whole = time.monotonic() - began
        job = server.submit(**spec)
        server.until(lambda: server.job(job)["phase"] == "evaluate", "it evaluates", 120)
        # What was found out is kept just after that is told.
        time.sleep(0.3)
        server.kill()
        server.start()
        began, phases = time.monotonic(), set()
        while (state := server.job(job))["state"] in ("queued", "running"):
            phases.add(state["phase"])
            time.sleep(0.005)
        again = time.monotonic() - began
        assert state["state"] == "succeeded" and state["attempt"] == 2, json.dumps(state, indent=1)
        assert "calibrate" not in phases, phases
        assert server.download(state) == artifact, "the job that was interrupted made another artifact"
        return f"{whole:.1f} s whole, {again:.1f} s after the kill"


def check_a_stop_in_the_middle_loses_no_job(binary):
    """SIGTERM instead: the server ends by itself, and the next one does the work."""
    with support.Server(binary) as server:
        assert server.put("/v1/models/resnet8", support.model_path("fm_resnet8")).status == 201
        assert server.put("/v1/datasets/calib", support.calibration_path("fm_resnet8")).status == 201
        assert server.put("/v1/datasets/eval", support.EVALUATION_PATH).status == 201
        jobs = [server.submit(model="resnet8", calibration="calib", evaluation="eval") for _ in range(3)]
        assert server.stop() == 0, f"exit {server.process.returncode}\n{server.log()}"
        server.start()
        for job in jobs:
            assert server.wait(job, timeout=180)["state"] == "succeeded", server.job(job)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
