"""One peer with one model, waiting for orders: what `octet bench --bursts` is for Octet.

    python worker.py ort|ort-exact|openvino|openvino-float MODEL.onnx INPUTS.npz THREADS

Loads, warms up and prints {"load_ms": .., "base_rss_bytes": ..}: the process before it loaded the model. Then each
line of standard input gets a line of JSON:

    run K       {"wall_ms": [..]}, one for each of K runs
    stat        {"peak_rss_bytes": ..}
    save FILE   {}, when the outputs stand in FILE, an .npz
"""

import json
import pathlib
import sys
import time

import numpy as np


def memory_bytes(key):
    """VmRSS, what the process holds, or VmHWM, the most it has held."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def onnx_runtime(exact):
    import onnxruntime

    def load(path, inputs, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if exact:  # Without VNNI: products that cannot saturate, for activations and weights of 8 bits.
            options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        return lambda: session.run(None, inputs), lambda outputs: dict(zip(names, outputs, strict=True))

    return load


def openvino(is_float):
    import openvino

    def load(path, inputs, threads):
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        if is_float:  # By itself it takes bfloat16 where the processor has it.
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        for name, array in inputs.items():
            request.set_tensor(name, openvino.Tensor(array))
        return request.infer, lambda outputs: {port.get_any_name(): a for port, a in outputs.items()}

    return load


LOADERS = {
    "ort": lambda: onnx_runtime(exact=False),
    "ort-exact": lambda: onnx_runtime(exact=True),
    "openvino": lambda: openvino(is_float=False),
    "openvino-float": lambda: openvino(is_float=True),
}


def answer(value):
    print(json.dumps(value), flush=True)


def main():
    engine, path, inputs, threads = sys.argv[1:]
    with np.load(inputs) as z:
        arrays = {name: z[name] for name in z.files}
    load = LOADERS[engine]()  # Imports the engine.
    base = memory_bytes("VmRSS")
    start = time.perf_counter()
    run, named = load(path, arrays, int(threads))
    load_ms = (time.perf_counter() - start) * 1e3
    run()
    answer({"load_ms": load_ms, "base_rss_bytes": base})
    for line in sys.stdin:
        match line.split():
            case ["run", count]:
                wall_ms = []
                for _ in range(int(count)):
                    start = time.perf_counter()
                    run()
                    wall_ms.append((time.perf_counter() - start) * 1e3)
                answer({"wall_ms": wall_ms})
            case ["stat"]:
                answer({"peak_rss_bytes": memory_bytes("VmHWM")})
            case ["save", out]:
                np.savez(out, **named(run()))
                answer({})
            case _:
                sys.exit(f"`{line.strip()}` is neither `run K`, `stat` nor `save FILE`")


if __name__ == "__main__":
    main()
