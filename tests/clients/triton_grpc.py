"""The Open Inference Protocol over gRPC, as Triton's Python clients, a probe and a reflecting tool speak it."""

import asyncio
import json
import queue
import sys
import threading

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

import support

# Samples of work for about a second: what is cancelled must still be under way.
LONG = 600


def client_of(server):
    return triton.InferenceServerClient(server.grpc_address)


def stub_of(server):
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(server.grpc_address, options))


def input_of(array, name="input", module=triton):
    tensor = module.InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


def request_of(array, name="input", model="lenet"):
    """A message with the values in their own field."""
    request = service_pb2.ModelInferRequest(model_name=model, id="typed")
    tensor = request.inputs.add(name=name, datatype="FP32", shape=array.shape)
    tensor.contents.fp32_contents.extend(array.ravel().tolist())
    return request


def refused(code, says, call):
    """A call ends with a code and a sentence."""
    try:
        call()
    except InferenceServerException as e:
        assert (e.status(), says in e.message()) == (f"StatusCode.{code}", True), f"{e}, not {code} «{says}»"
        return
    except grpc.RpcError as e:
        assert (e.code().name, says in e.details()) == (code, True), f"{e}, not {code} «{says}»"
        return
    raise AssertionError(f"was not refused with {code} «{says}»")


def check_health_and_metadata(server):
    server.quantize("fm_lenet", endpoint="lenet", evaluation=False)
    client = client_of(server)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("lenet") and client.is_model_ready("lenet", "1")
    assert not client.is_model_ready("nobody") and not client.is_model_ready("lenet", "7")
    about = client.get_server_metadata()
    rest = server.get("/v2").json()
    assert (about.name, list(about.extensions)) == (rest["name"], rest["extensions"]), about
    as_json = {"as_json": True}
    model = client.get_model_metadata("lenet", **as_json)
    rest = server.get("/v2/models/lenet").json()
    assert (model["name"], model["versions"], model["platform"]) == (rest["name"], rest["versions"], rest["platform"])
    for side in ("inputs", "outputs"):
        got = [(p["name"], p["datatype"], [int(d) for d in p["shape"]]) for p in model[side]]
        assert got == [(p["name"], p["datatype"], p["shape"]) for p in rest[side]], (got, rest)
    config = client.get_model_config("lenet").config
    rest = server.get("/v2/models/lenet/config").json()
    assert (config.name, config.platform, config.max_batch_size) == (
        rest["name"], rest["platform"], rest["max_batch_size"])
    assert [(p.name, p.data_type, list(p.dims)) for p in config.input] == [("input", 11, [1, 28, 28])], config
    assert config.parameters["precision"].string_value == "int8"
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    refused("NOT_FOUND", "nobody", lambda: client.get_model_metadata("nobody"))
    refused("NOT_FOUND", "nobody", lambda: client.get_model_config("nobody"))


def check_raw_and_typed_values_give_what_rest_gives(server):
    client, batch = client_of(server), support.images()[0][:5]
    out = client.get_model_metadata("lenet").outputs[0].name
    want = server.infer("lenet", "input", batch)
    result = client.infer("lenet", [input_of(batch)], request_id="request-7")
    assert np.array_equal(result.as_numpy(out), want)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("lenet", "1", "request-7"), response
    wanted = [triton.InferRequestedOutput(out)]
    for coding in (None, "gzip", "deflate"):
        again = client.infer("lenet", [input_of(batch)], model_version="1", outputs=wanted,
                             compression_algorithm=coding)
        assert np.array_equal(again.as_numpy(out), want), coding
    typed = stub_of(server).ModelInfer(request_of(batch))
    assert len(typed.raw_output_contents) == 1 and typed.id == "typed"
    assert np.array_equal(np.frombuffer(typed.raw_output_contents[0], np.float32).reshape(5, 10), want)
    # The float twin of the same endpoint.
    twin = client.infer("lenet", [input_of(batch)], parameters={"precision": "fp32"}).as_numpy(out)
    assert not np.array_equal(twin, want) and np.abs(twin - want).max() < 2
    classes = client.infer("lenet", [input_of(batch)], outputs=[triton.InferRequestedOutput(out, class_count=2)])
    classes = classes.as_numpy(out)
    assert classes.shape == (5, 2)
    assert [int(c.decode().split(":")[1]) for c in classes[:, 0]] == list(want.argmax(axis=1)), classes
    many = [client.async_infer("lenet", [input_of(batch)], callback=lambda result, error: None) for _ in range(3)]
    assert len(many) == 3


def check_many_calls_at_once(server):
    client, batch = client_of(server), support.images()[0][:40]
    out = client.get_model_metadata("lenet").outputs[0].name
    answers = queue.Queue()
    for n in range(40):
        client.async_infer("lenet", [input_of(batch[n:n + 1])], request_id=str(n),
                           callback=lambda result, error: answers.put((result, error)))
    want = server.infer("lenet", "input", batch)
    for _ in range(40):
        result, error = answers.get(timeout=60)
        assert error is None, error
        n = int(result.get_response().id)
        assert np.array_equal(result.as_numpy(out)[0], want[n]), n


def check_a_stream_answers_in_order_and_outlives_a_refusal(server):
    client, batch = client_of(server), support.images()[0][:8]
    out = client.get_model_metadata("lenet").outputs[0].name
    want = server.infer("lenet", "input", batch)
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for n in range(8):
        client.async_stream_infer("lenet", [input_of(batch[n:n + 1])], request_id=str(n))
        if n == 3:
            client.async_stream_infer("nobody", [input_of(batch[:1])], request_id="wrong")
    client.async_stream_infer("lenet", [input_of(batch[:1])], request_id="last",
                              enable_empty_final_response=True)
    order = []
    for _ in range(10):
        result, error = answers.get(timeout=60)
        if error:
            assert "no endpoint `nobody`" in error.message(), error
            order.append("wrong")
            continue
        response = result.get_response()
        order.append(response.id)
        if response.id == "last":
            assert response.parameters["triton_final_response"].bool_param
        else:
            assert np.array_equal(result.as_numpy(out)[0], want[int(response.id)]), response.id
    client.stop_stream()
    assert order == ["0", "1", "2", "3", "wrong", "4", "5", "6", "7", "last"], order
    # The refusal names its request.
    answer = list(stub_of(server).ModelStreamInfer(iter([request_of(batch[:1], model="nobody")])))
    assert [(a.error_message != "", a.infer_response.id) for a in answer] == [(True, "typed")], answer


def check_what_is_wrong_is_said_with_a_code(server):
    client, stub = client_of(server), stub_of(server)
    one = np.zeros((1, 1, 28, 28), np.float32)
    refused("NOT_FOUND", "nobody", lambda: client.infer("nobody", [input_of(one)]))
    refused("NOT_FOUND", "version 9", lambda: client.infer("lenet", [input_of(one)], model_version="9"))
    refused("INVALID_ARGUMENT", "inptu", lambda: client.infer("lenet", [input_of(one, "inptu")]))
    refused("INVALID_ARGUMENT", "27", lambda: client.infer("lenet", [input_of(one[..., :27].copy())]))
    wanted = [triton.InferRequestedOutput("nothing")]
    refused("INVALID_ARGUMENT", "nothing", lambda: client.infer("lenet", [input_of(one)], outputs=wanted))
    refused("INVALID_ARGUMENT", "int4",
            lambda: client.infer("lenet", [input_of(one)], parameters={"precision": "int4"}))
    mixed = request_of(one)
    mixed.raw_input_contents.append(one.tobytes())
    refused("INVALID_ARGUMENT", "only one of them", lambda: stub.ModelInfer(mixed))
    raw = service_pb2.ModelInferRequest(model_name="lenet")
    raw.inputs.add(name="input", datatype="FP32", shape=[1, 1, 28, 28])
    refused("INVALID_ARGUMENT", "neither", lambda: stub.ModelInfer(raw))
    raw.raw_input_contents.append(one.tobytes()[:-1])
    refused("INVALID_ARGUMENT", "3135 bytes", lambda: stub.ModelInfer(raw))
    raw.raw_input_contents.append(b"")
    refused("INVALID_ARGUMENT", "1 inputs, but 2 entries", lambda: stub.ModelInfer(raw))
    refused("UNIMPLEMENTED", "serving.shared_memory", lambda: client.get_system_shared_memory_status())
    refused("UNIMPLEMENTED", "CUDA shared memory", lambda: client.register_cuda_shared_memory("x", b"eA==", 0, 1))
    channel = grpc.insecure_channel(server.grpc_address)
    other = channel.unary_unary("/inference.Other/Call", lambda m: m, lambda m: m)
    refused("UNIMPLEMENTED", "/inference.Other/Call", lambda: other(b""))
    broken = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", lambda m: m, lambda m: m)
    for message in (b"\x3a\xff\xff\xff\xff\x0f", b"\x0a\x05a", b"\xff" * 20, b"\x2a\x02\x08"):
        try:
            broken(message)
            raise AssertionError(f"{message} was taken")
        except grpc.RpcError as e:
            assert e.code().name in ("INTERNAL", "INVALID_ARGUMENT"), e
    assert client.is_server_live(), "it still stands"


def check_limits(server):
    batch = support.images()[0][:2000]  # 6.3 MB: beyond the 4 MiB that gRPC takes by default
    out = client_of(server).get_model_metadata("lenet").outputs[0].name
    answer = client_of(server).infer("lenet", [input_of(batch)]).as_numpy(out)
    assert answer.shape == (2000, 10)
    assert np.array_equal(answer[:5], server.infer("lenet", "input", batch[:5]))
    with support.Server(server.binary, settings={"OCTET_LIMITS__INFER_BODY_BYTES": "100000"}) as small:
        small.serve("lenet", "fm_lenet")
        client = client_of(small)
        assert client.infer("lenet", [input_of(batch[:31])]).as_numpy(out).shape == (31, 10)
        refused("RESOURCE_EXHAUSTED", "too large", lambda: client.infer("lenet", [input_of(batch[:32])]))
        zeros = np.zeros((100, 1, 28, 28), np.float32)
        refused("RESOURCE_EXHAUSTED", "100000",
                lambda: client.infer("lenet", [input_of(zeros)], compression_algorithm="gzip"))
        assert client.is_server_live()


def counted(server, outcome):
    return server.metric("octet_inference_requests_total", endpoint="slow", protocol="grpc", outcome=outcome)


def check_cancelled_calls_and_deadlines(server):
    server.serve("slow", "fm_resnet8")
    batch = np.repeat(support.images()[0][:LONG], 4, axis=0)
    client = client_of(server)
    cancelled = counted(server, "cancelled")
    call = client.async_infer("slow", [input_of(batch)], callback=lambda result, error: None)
    server.until(lambda: server.metric("octet_inference_in_flight", endpoint="slow") >= 1, "it runs")
    call.cancel()
    server.until(lambda: counted(server, "cancelled") == cancelled + 1, "the cancelled call is counted")
    # The client gives up, and the server hears of it.
    refused("DEADLINE_EXCEEDED", "", lambda: client.infer("slow", [input_of(batch)], client_timeout=0.2))
    server.until(lambda: counted(server, "cancelled") + counted(server, "deadline") == cancelled + 2, "and the late")
    # A stream that is dropped takes its requests along.
    stream = client_of(server)
    stream.start_stream(lambda result, error: None)
    for _ in range(3):
        stream.async_stream_infer("slow", [input_of(batch)])
    server.until(lambda: server.metric("octet_inference_in_flight", endpoint="slow") >= 3, "they run")
    stream.stop_stream(cancel_requests=True)
    server.until(lambda: counted(server, "cancelled") + counted(server, "deadline") == cancelled + 5, "and the stream")


def check_a_full_queue_and_a_short_timeout(binary):
    settings = {"OCTET_SERVING__QUEUE_LIMIT": "1", "OCTET_SERVING__THREADS": "1", "OCTET_SERVING__BATCH_MAX": "1"}
    with support.Server(binary, settings=settings) as server:
        server.serve("slow", "fm_resnet8")
        batch = np.repeat(support.images()[0][:LONG], 4, axis=0)
        client, one = client_of(server), batch[:1]
        calls = []

        def in_flight(count):
            server.until(lambda: server.metric("octet_inference_in_flight", endpoint="slow") == count,
                         f"{count} requests")

        calls.append(client.async_infer("slow", [input_of(batch)], callback=lambda result, error: None))
        in_flight(1)
        calls.append(client.async_infer("slow", [input_of(one)], callback=lambda result, error: None))
        in_flight(2)
        refused("RESOURCE_EXHAUSTED", "queue", lambda: client.infer("slow", [input_of(one)]))
        calls[1].cancel()
        in_flight(1)
        errors = queue.Queue()
        # In microseconds: it waits behind the long one.
        client.async_infer("slow", [input_of(one)], timeout=50_000, callback=lambda result, error: errors.put(error))
        error = errors.get(timeout=120)
        assert error is not None and error.status() == "StatusCode.DEADLINE_EXCEEDED", error
        calls[0].cancel()
        server.until(lambda: counted(server, "deadline") == 1 and counted(server, "rejected") == 1, "both are counted")


def check_repository_statistics_and_settings(server):
    client = client_of(server)
    index = {m.name: m.state for m in client.get_model_repository_index().models}
    assert index["lenet"] == "READY", index
    stats = client.get_inference_statistics("lenet").model_stats[0]
    assert stats.inference_stats.success.count > 0 and stats.inference_stats.fail.count > 0, stats
    assert stats.batch_stats and stats.last_inference > 1_600_000_000_000, stats
    assert {s.name for s in client.get_inference_statistics().model_stats} >= {"lenet"}
    refused("NOT_FOUND", "nobody", lambda: client.get_inference_statistics("nobody"))
    model = support.model_path("fm_mlp").read_bytes()
    file = {"file:1/model.onnx": model}
    refused("INVALID_ARGUMENT", "config", lambda: client.load_model("fresh", files=file))
    refused("NOT_FOUND", "fresh", lambda: client.load_model("fresh"))
    refused("INVALID_ARGUMENT", "", lambda: client.load_model("fresh", config="{}", files={"file:1/model.onnx": b"x"}))
    client.load_model("fresh", config=json.dumps({"max_batch_size": 8}), files=file)
    assert client.is_model_ready("fresh", "1")
    client.unload_model("fresh")
    assert not client.is_model_ready("fresh")
    x = np.zeros((1, 1, 28, 28), np.float32)
    refused("UNAVAILABLE", "not ready", lambda: client.infer("fresh", [input_of(x)]))
    client.load_model("fresh")
    assert client.is_model_ready("fresh")
    settings = client.get_log_settings().settings
    assert settings["log_info"].bool_param and settings["log_verbose_level"].uint32_param == 0
    changed = client.update_log_settings({"log_verbose_level": 1}).settings
    assert changed["log_verbose_level"].uint32_param == 1
    client.update_log_settings({"log_verbose_level": 0})
    refused("INVALID_ARGUMENT", "log_file", lambda: client.update_log_settings({"log_file": "/tmp/x"}))
    assert list(client.get_trace_settings().settings["trace_level"].value) == ["OFF"]
    refused("INVALID_ARGUMENT", "trace_level",
            lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}))
    refused("NOT_FOUND", "nobody", lambda: client.get_trace_settings("nobody"))


def check_health_service_and_reflection(binary):
    with support.Server(binary, settings={"OCTET_SERVING__DRAIN_DELAY_MS": "1500"}) as server:
        channel = grpc.insecure_channel(server.grpc_address)
        health = health_pb2_grpc.HealthStub(channel)
        serving, stopping = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", "inference.GRPCInferenceService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == serving
        refused("NOT_FOUND", "nobody", lambda: health.Check(health_pb2.HealthCheckRequest(service="nobody")))
        known = ProtoReflectionDescriptorDatabase(channel)
        assert set(known.get_services()) >= {"inference.GRPCInferenceService", "grpc.health.v1.Health"}
        pool = descriptor_pool.DescriptorPool(known)
        ours = pool.FindServiceByName("inference.GRPCInferenceService")
        theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        same_messages(ours, theirs)
        # Not ready during the drain, and then the watch ends with the server.
        seen = []
        watch = health.Watch(health_pb2.HealthCheckRequest())
        thread = threading.Thread(target=lambda: seen.extend(r.status for r in watch))
        thread.start()
        server.until(lambda: seen == [serving], "the watch has begun")
        assert server.stop() == 0
        thread.join(30)
        assert seen == [serving, stopping], seen
    return f"{len(ours.methods)} calls"


def same_messages(ours, theirs):
    """Every field that we have is one of Triton's: name, number, type."""
    known = {m.name: m for m in theirs.methods}
    pairs = [(m.input_type, known[m.name].input_type) for m in ours.methods]
    pairs += [(m.output_type, known[m.name].output_type) for m in ours.methods]
    assert all(m.name in known for m in ours.methods)
    done = set()
    while pairs:
        a, b = pairs.pop()
        if a.full_name in done:
            continue
        done.add(a.full_name)
        assert a.full_name == b.full_name
        fields = {f.name: f for f in b.fields}
        for field in a.fields:
            other = fields.get(field.name)
            assert other is not None, field.full_name
            facts = [(f.number, f.type, f.is_repeated, f.containing_oneof and f.containing_oneof.name)
                     for f in (field, other)]
            assert facts[0] == facts[1], (field.full_name, facts)
            if field.message_type:
                pairs.append((field.message_type, other.message_type))
            if field.enum_type:
                assert [(v.name, v.number) for v in field.enum_type.values] == [
                    (v.name, v.number) for v in other.enum_type.values], field.full_name


def check_a_stop_lets_running_calls_finish(binary):
    with support.Server(binary) as server:
        server.serve("slow", "fm_resnet8")
        batch = support.images()[0][:LONG]
        client, answers = client_of(server), queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("slow", [input_of(batch)])
        answers_of_call = queue.Queue()
        client_of(server).async_infer("slow", [input_of(batch)],
                                      callback=lambda result, error: answers_of_call.put((result, error)))
        server.until(lambda: server.metric("octet_inference_in_flight", endpoint="slow") >= 2, "both run")
        assert server.stop() == 0
        for answers in (answers, answers_of_call):
            result, error = answers.get(timeout=30)
            assert error is None and result is not None, error
        client.stop_stream(cancel_requests=True)


def check_the_asynchronous_client(server):
    batch = support.images()[0][:5]
    want = server.infer("lenet", "input", batch)

    async def work():
        async with triton_aio.InferenceServerClient(server.grpc_address) as client:
            assert await client.is_server_live() and await client.is_server_ready()
            assert await client.is_model_ready("lenet") and not await client.is_model_ready("nobody")
            model = await client.get_model_metadata("lenet")
            assert (await client.get_server_metadata()).name == "octet"
            assert (await client.get_model_config("lenet")).config.name == "lenet"
            assert (await client.get_inference_statistics("lenet")).model_stats[0].name == "lenet"
            assert {m.name for m in (await client.get_model_repository_index()).models} >= {"lenet"}
            out = model.outputs[0].name
            results = await asyncio.gather(
                *(client.infer("lenet", [input_of(batch, module=triton_aio)]) for _ in range(20)))
            assert all(np.array_equal(r.as_numpy(out), want) for r in results)
            try:
                await client.infer("nobody", [input_of(batch, module=triton_aio)])
                raise AssertionError("was not refused")
            except InferenceServerException as e:
                assert e.status() == "StatusCode.NOT_FOUND", e

            async def requests():
                for n in range(5):
                    yield {"model_name": "lenet", "inputs": [input_of(batch[n:n + 1], module=triton_aio)],
                           "request_id": str(n)}

            got = []
            async for result, error in client.stream_infer(requests()):
                assert error is None, error
                got.append((result.get_response().id, result.as_numpy(out)[0]))
            assert [n for n, _ in got] == ["0", "1", "2", "3", "4"]
            assert all(np.array_equal(row, want[int(n)]) for n, row in got)

    asyncio.run(work())


def check_calls_are_counted(server):
    def calls():
        return [server.metric("octet_grpc_requests_total", method=method, code=code)
                for method, code in (("ServerMetadata", "Ok"), ("ModelMetadata", "NotFound"), ("_other", "Unimplemented"))]

    client, before = client_of(server), calls()
    client.get_server_metadata()
    refused("NOT_FOUND", "nobody", lambda: client.get_model_metadata("nobody"))
    other = grpc.insecure_channel(server.grpc_address).unary_unary("/inference.Other/Call")
    refused("UNIMPLEMENTED", "/inference.Other/Call", lambda: other(b""))
    assert [now - then for now, then in zip(calls(), before)] == [1, 1, 1], (before, calls())


def check_it_can_be_switched_off(binary):
    for off in ("off", ""):
        with support.Server(binary, settings={"OCTET_GRPC_LISTEN": "127.0.0.1:1"}, grpc=off) as server:
            assert server.get("/v2/health/ready").status == 200
            assert "gRPC: off" in server.log(), server.log()
            try:
                client_of(server).is_server_live(client_timeout=2)
                raise AssertionError("it answers")
            except InferenceServerException:
                pass


if __name__ == "__main__":
    support.main(sys.modules[__name__])
