"""A job outlives the server: `kill -9` in the middle, start again, and it finishes as if nothing had been."""

import json
import sys
import time

import support

PHASES = ["import", "calibrate", "evaluate"]


def finish_after_kill(binary, phase):
    """Kills the server as soon as the job is in `phase` or past it."""
    with support.Server(binary, settings=SETTINGS) as server:
        for path, file in [
            ("/v1/models/resnet8", support.model_path("fm_resnet8")),
            ("/v1/datasets/calib", support.calibration_path("fm_resnet8")),
            ("/v1/datasets/eval", support.EVALUATION_PATH),
        ]:
            assert server.put(path, file).status in (200, 201)
        spec = {"model": "resnet8", "calibration": "calib", "evaluation": "eval", "endpoint": "resnet8"}
        want = server.wait(server.submit(**spec))
        assert want["state"] == "succeeded", want
        artifact = server.download(want)

        job = server.submit(**spec)
        while True:
            state = server.job(job)
            if state["state"] == "running" and state.get("phase") in PHASES[PHASES.index(phase):] + ["measure", "export"]:
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
        return f"killed in phase {state['phase']}, attempts {got.get('attempt')}"


def check_a_job_killed_in_calibration_finishes(binary):
    return finish_after_kill(binary, "calibrate")


def check_a_job_killed_in_evaluation_finishes(binary):
    return finish_after_kill(binary, "evaluate")


def check_a_stop_in_the_middle_loses_no_job(binary):
    """SIGTERM instead: the server ends by itself, and the next one does the work."""
    with support.Server(binary, settings=SETTINGS) as server:
        assert server.put("/v1/models/resnet8", support.model_path("fm_resnet8")).status == 201
        assert server.put("/v1/datasets/calib", support.calibration_path("fm_resnet8")).status == 201
        assert server.put("/v1/datasets/eval", support.EVALUATION_PATH).status == 201
        jobs = [server.submit(model="resnet8", calibration="calib", evaluation="eval") for _ in range(3)]
        assert server.stop() == 0, f"exit {server.process.returncode}\n{server.log()}"
        server.start()
        for job in jobs:
            assert server.wait(job, timeout=180)["state"] == "succeeded", server.job(job)


# A dead worker's lease ends sooner than by default, so that the test waits seconds and not half a minute.
SETTINGS = {}

if __name__ == "__main__":
    support.main(sys.modules[__name__])
