"""Tensors in POSIX shared memory, as Triton's Python clients hand them over."""

import contextlib
import os
import sys

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm

import support

ON = {"OCTET_SERVING__SHARED_MEMORY": "true"}


def clients(server):
    return [(triton_http, triton_http.InferenceServerClient(server.address)),
            (triton_grpc, triton_grpc.InferenceServerClient(server.grpc_address))]


@contextlib.contextmanager
def region(name, size):
    """An object of shared memory that is gone afterwards."""
    handle = shm.create_shared_memory_region(name, f"octet-test-{os.getpid()}-{name}", size, create_only=True)
    try:
        yield handle, handle._mpsm_handle.name.lstrip("/")
    finally:
        shm.destroy_shared_memory_region(handle)


def status(client):
    """Regions by name: key, offset, size."""
    all_ = client.get_system_shared_memory_status()
    rows = all_ if isinstance(all_, list) else [
        {"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.byte_size} for r in all_.regions.values()]
    return {r["name"]: (r["key"], r["offset"], r["byte_size"]) for r in rows}


def check_inputs_and_outputs_go_through_shared_memory(binary):
    batch = support.images()[0][:5]
    with support.Server(binary, settings=ON) as server:
        server.quantize("fm_lenet", endpoint="lenet", evaluation=False)
        out = server.get("/v2/models/lenet").json()["outputs"][0]["name"]
        want = server.infer("lenet", "input", batch)
        for module, client in clients(server):
            with region("tensors", 256 + batch.nbytes + want.nbytes) as (handle, key):
                assert status(client) == {}
                client.register_system_shared_memory("tensors", key, batch.nbytes + want.nbytes, offset=256)
                assert status(client) == {"tensors": (key, 256, batch.nbytes + want.nbytes)}, status(client)
                shm.set_shared_memory_region(handle, [batch], offset=256)
                x = module.InferInput("input", list(batch.shape), "FP32")
                x.set_shared_memory("tensors", batch.nbytes)
                # Only the input; then the output, too.
                assert np.array_equal(client.infer("lenet", [x]).as_numpy(out), want), module
                y = module.InferRequestedOutput(out)
                y.set_shared_memory("tensors", want.nbytes, offset=batch.nbytes)
                answer = client.infer("lenet", [x], outputs=[y]).get_output(out)
                assert list(answer["shape"] if isinstance(answer, dict) else answer.shape) == [5, 10], answer
                got = shm.get_contents_as_numpy(handle, np.float32, want.shape, offset=256 + batch.nbytes)
                assert np.array_equal(got, want), module
                del got
                # What is there now, not what was there first.
                shm.set_shared_memory_region(handle, [np.ascontiguousarray(batch[::-1])], offset=256)
                assert np.array_equal(client.infer("lenet", [x]).as_numpy(out), want[::-1]), module
                client.unregister_system_shared_memory("tensors")
                support.refused(lambda: client.infer("lenet", [x]), "no region `tensors`")
                client.unregister_system_shared_memory()


def check_what_does_not_fit_is_refused_by_name(binary):
    batch = support.images()[0][:1]
    with support.Server(binary, settings=ON | {"OCTET_LIMITS__INFER_BODY_BYTES": "10000"}) as server:
        server.quantize("fm_lenet", endpoint="lenet", evaluation=False)
        assert "system_shared_memory" in server.get("/v2").json()["extensions"]
        out = server.get("/v2/models/lenet").json()["outputs"][0]["name"]
        for module, client in clients(server):
            with region("r", 16384) as (handle, key):
                def register(name, key, size, offset=0):
                    return lambda: client.register_system_shared_memory(name, key, size, offset)
                support.refused(register("r", "../passwd", 1), "`../passwd` is not a key")
                support.refused(register("r", "/", 1), "`/` is not a key")
                support.refused(register("r", "octet-nobody", 1), "`octet-nobody` cannot be opened")
                support.refused(register("r", key, 16384, 1), "has 16384 bytes: there are no 16384 from byte 1 on")
                register("r", key, 16384)()
                support.refused(register("r", key, 16384), "`r` of shared memory is registered already")
                support.refused(lambda: client.get_system_shared_memory_status("s"), "no region `s`")
                shm.set_shared_memory_region(handle, [batch])

                def infer(input_size=batch.nbytes, output_size=40, offset=0, samples=1):
                    x = module.InferInput("input", [samples, 1, 28, 28], "FP32")
                    x.set_shared_memory("r", input_size, offset)
                    y = module.InferRequestedOutput(out)
                    y.set_shared_memory("r", output_size, 16384 - 40)
                    return lambda: client.infer("lenet", [x], outputs=[y])
                infer()()
                support.refused(
                    infer(input_size=3135),
                    "input `input`: 3135 bytes of shared memory, but FP32 of shape [1, 1, 28, 28] takes 3136")
                support.refused(
                    infer(offset=16000),
                    "input `input`: region `r` of shared memory has 16384 bytes: there are no 3136 from byte 16000 on")
                support.refused(
                    infer(output_size=39),
                    f"output `{out}`: it has 40 bytes, shared_memory_byte_size is 39")
                support.refused(infer(input_size=4 * batch.nbytes, samples=4), "longer than the limit of 10000 bytes")
                # The client takes its memory away: an error, and the server lives.
                os.truncate(f"/dev/shm/{key}", 100)
                support.refused(infer(), "input `input`: region `r` of shared memory cannot be used")
                client.unregister_system_shared_memory("r")
                assert status(client) == {}
        assert server.get("/v2/health/ready").status == 200


def check_it_is_off_unless_asked_for(binary):
    with support.Server(binary) as server:
        assert "system_shared_memory" not in server.get("/v2").json()["extensions"]
        for _, client in clients(server):
            support.refused(lambda: client.register_system_shared_memory("r", "r", 1), "serving.shared_memory")
            support.refused(lambda: client.get_system_shared_memory_status(), "serving.shared_memory")


if __name__ == "__main__":
    support.main(sys.modules[__name__])
