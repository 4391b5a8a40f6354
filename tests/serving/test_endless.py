"""Networks that do not come to an end: not served if it shows when they are loaded, stopped if it shows later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from serving.small_models import HOW, add_bundle, add_onnx, end, eventually, save, served, window
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from seisserve.errors import UsageError
from seisserve_serving.calls import Call
from seisserve_serving.errors import Cancelled, Expired
from seisserve_serving.lanes import Batching
from seisserve_serving.models import Models, State
from seisserve_serving.predict import predict
from seisserve_serving.server import Server

MANY = 1 << 62
SOON = HOW._replace(run_timeout_s=0.5)


def add_counter(base: Path, version: int = 1, more: int = 0) -> Path:
    """A plain ONNX folder that counts to `trips` + more, one by one."""
    start = numpy_helper.from_array(np.array([0], np.int64))
    one = numpy_helper.from_array(np.array([1], np.int64))
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Constant", [], ["one"], value=one),
            helper.make_node("Add", ["before", "one"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.INT64, [1]),
        ],
    )
    ends = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in ("trips", "count")]
    nodes = [
        helper.make_node("Constant", [], ["start"], value=start),
        helper.make_node("Constant", [], ["more"], value=numpy_helper.from_array(np.array([more], np.int64))),
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("Add", ["trips", "more"], ["all"]),
        helper.make_node("ReduceMax", ["all"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "yes", "start"], ["count"], body=body),
    ]
    folder = base / str(version)
    building = base.parent / f".{base.name}"
    save(helper.make_graph(nodes, "count", ends[:1], ends[1:]), building / "model.onnx")
    base.mkdir(exist_ok=True, parents=True)
    building.rename(folder)
    return folder


def add_wide(base: Path) -> Path:
    """A plain ONNX folder without a loop that takes minutes for each row: products of large matrices."""
    size = 2048
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([size, size], np.int64))),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "shape"], ["m0"]),
        *[helper.make_node("MatMul", [f"m{k}", f"m{k}"], [f"m{k + 1}"]) for k in range(2000)],
        helper.make_node("ReduceSum", ["m2000"], ["last"], keepdims=0),
        helper.make_node("Add", ["x", "last"], ["y"]),
    ]
    save(helper.make_graph(nodes, "wide", ends[:1], ends[1:]), base / "1" / "model.onnx")
    return base / "1"


def count(models: Models, trips: int, call: Call | None = None) -> int:
    inputs = {"trips": np.array([trips], np.int64)}
    return int(predict(models.get("counter"), inputs, "", [], call or Call()).result()["count"][0])


@pytest.mark.parametrize("kind", ["loop", "wide"])
def test_a_network_that_does_not_end_is_not_served_and_the_others_are(tmp_path: Path, kind: str) -> None:
    if kind == "loop":
        add_counter(tmp_path / "endless", more=MANY)
    else:
        add_wide(tmp_path / "endless")
    add_onnx(tmp_path / "sum", 1)
    before = threading.active_count()
    models = served(tmp_path, SOON)
    assert list(models.served) == ["sum"]
    state = models.states("endless")[1]
    assert (state.state, state.code) == (State.END, 9)
    assert "did not come to an end within 0.5 s (run_timeout_s)" in state.message
    assert "zeros" in state.message
    end(models)
    eventually(lambda: threading.active_count() <= before)  # it was stopped, not left alone


def test_serving_goes_on_while_an_endless_version_is_tried(tmp_path: Path) -> None:
    add_counter(tmp_path / "counter")
    models = served(tmp_path, SOON._replace(run_timeout_s=10.0), poll_s=0.02)
    add_counter(tmp_path / "counter", 2, more=MANY)
    eventually(lambda: models.states("counter").get(2, (None,))[0] is State.LOADING)
    assert count(models, 5) == 5
    assert models.states("counter")[2].state is State.LOADING
    eventually(lambda: models.states("counter")[2].state is State.END)
    add_counter(tmp_path / "counter", 3, more=1)
    eventually(lambda: list(models.served["counter"]) == [3])
    assert count(models, 5) == 6
    end(models)


def test_a_warm_up_request_that_does_not_end_is_told_of_by_number(tmp_path: Path) -> None:
    folder = add_counter(tmp_path / "counter")
    request = predict_pb2.PredictRequest()
    request.inputs["trips"].CopyFrom(tf.make_tensor_proto(np.array([MANY], np.int64)))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())
    models = served(tmp_path, SOON)
    assert "tf_serving_warmup_requests: record 0 did not come to an end" in models.failed["counter"][1]
    end(models)


def test_a_call_that_does_not_end_gives_its_lane_back_at_its_deadline(tmp_path: Path) -> None:
    add_counter(tmp_path / "counter")
    models = served(tmp_path)
    server = Server(models, port=0)
    server.start()
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "counter"
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for _ in range(2):
            request.inputs["trips"].CopyFrom(tf.make_tensor_proto(np.array([MANY], np.int64)))
            with pytest.raises(grpc.RpcError) as caught:
                stub.Predict(request, timeout=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            request.inputs["trips"].CopyFrom(tf.make_tensor_proto(np.array([3], np.int64)))
            answer = stub.Predict(request, timeout=30)  # on the only lane
            assert tf.make_ndarray(answer.outputs["count"]) == [3]
    server.stop(grace_s=5)
    end(models)


def test_without_a_deadline_it_is_stopped_at_the_limit_or_when_its_caller_goes(tmp_path: Path) -> None:
    add_counter(tmp_path / "counter")
    models = served(tmp_path, SOON)
    with pytest.raises(Expired, match=r"counter did not come to an end within 0\.5 s \(run_timeout_s\)"):
        count(models, MANY)
    end(models)
    models = served(tmp_path, SOON._replace(run_timeout_s=0))
    call = Call(deadline=time.monotonic() + 2)
    with pytest.raises(Expired, match="the deadline passed while counter was computed"):
        count(models, MANY, call)
    call = Call()
    threading.Timer(0.3, call.cancel).start()
    with pytest.raises(Cancelled, match="the caller has gone"):
        count(models, MANY, call)
    assert count(models, 4) == 4
    end(models)


def test_calls_that_are_computed_together_are_stopped_at_the_limit(tmp_path: Path) -> None:
    add_counter(tmp_path / "counter")
    models = served(tmp_path, SOON._replace(batching=Batching(max_batch_size=4), batch_plain=True))
    with pytest.raises(Expired, match="run_timeout_s"):
        count(models, MANY)
    assert count(models, 4) == 4
    end(models)


def test_what_a_network_of_a_plain_folder_cannot_compute_is_still_the_caller_s_fault(tmp_path: Path) -> None:
    folder = add_onnx(tmp_path / "sum", 1)
    model = onnx.load(folder / "model.onnx")
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[1].dim_param = tensor.name
    onnx.save(model, folder / "model.onnx")
    models = served(tmp_path, SOON)
    wrong = {"a": np.zeros((1, 2), np.int64), "b": np.zeros((1, 3), np.int64)}
    with pytest.raises(UsageError, match="sum cannot compute these inputs"):
        predict(models.get("sum"), wrong, "", [], Call()).result()
    end(models)


def add_endless_saved_model(folder: Path) -> None:
    module: Any = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
    def halve(x: Any) -> Any:
        (y,) = tf.while_loop(lambda y: tf.constant(True), lambda y: (y * 0.5,), (x,))
        return {"y": y}

    tf.saved_model.save(module, str(folder), signatures={"serving_default": halve})


def test_a_runtime_that_cannot_be_stopped_is_left_alone_and_the_process_serves_and_ends(tmp_path: Path) -> None:
    """TensorFlow cannot be stopped: its thread goes on, so this is a process of its own."""
    add_bundle(tmp_path / "picker", 1)
    add_endless_saved_model(tmp_path / "endless" / "1")
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [
        sys.executable, "-m", "seisserve", "serve", str(tmp_path), "--port", "0", "--run_timeout_s", "5",
        "--num_load_threads", "2",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet) as process:
        try:
            assert process.stdout is not None
            address, http = (process.stdout.readline().strip().rpartition(" ")[2] for _ in range(2))
            with grpc.insecure_channel(address) as channel:
                question = get_model_status_pb2.GetModelStatusRequest()
                question.model_spec.name = "endless"
                stub = model_service_pb2_grpc.ModelServiceStub(channel)
                (version,) = stub.GetModelStatus(question, timeout=60).model_version_status
                assert version.state == State.END
                assert "did not come to an end within 5 s (run_timeout_s)" in version.status.error_message
                assert "cannot be stopped" in version.status.error_message
                request = predict_pb2.PredictRequest()
                request.model_spec.name = "picker"
                request.inputs["waveform"].CopyFrom(tf.make_tensor_proto(window()))
                answer: Any = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
                assert (tf.make_ndarray(answer.outputs["probability"]) == 0.5).all()
            assert httpx.get(f"http://{http}/healthz", timeout=60).status_code == 200
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 0, log


def test_a_server_that_stops_does_not_wait_for_a_load(tmp_path: Path) -> None:
    add_counter(tmp_path / "counter")
    models = served(tmp_path, HOW._replace(run_timeout_s=0), poll_s=0.02)
    add_counter(tmp_path / "counter", 2, more=MANY)
    eventually(lambda: models.states("counter").get(2, (None,))[0] is State.LOADING)
    models.close()
    assert models.repository is not None
    eventually(lambda: models.repository is not None and not models.repository._thread.is_alive())
    models.lanes.close()
