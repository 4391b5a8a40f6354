"""The base line: grpcio's blocking server with a thread for each session, V2 with raw contents, and nothing else.

Unlike the others it runs where this project is installed, for the messages.
"""

import queue
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from network import INSTANCES, PORT, Network

from seisserve.proto import inference_wire_pb2 as wire

networks = queue.SimpleQueue()
for _ in range(INSTANCES):
    networks.put(Network())


def infer(request, context):
    windows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(list(request.inputs[0].shape))
    network = networks.get()
    try:
        made = network(windows)
    finally:
        networks.put(network)
    output = wire.ModelInferResponse.InferOutputTensor(name=network.output.name, datatype="FP32", shape=made.shape)
    return wire.ModelInferResponse(
        model_name=request.model_name, outputs=[output], raw_output_contents=[made.tobytes()]
    )  # fmt: skip


method = grpc.unary_unary_rpc_method_handler(
    infer, wire.ModelInferRequest.FromString, wire.ModelInferResponse.SerializeToString
)
limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
server = grpc.server(ThreadPoolExecutor(INSTANCES), options=limits)
service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method})
server.add_generic_rpc_handlers([service])
server.add_insecure_port(f"127.0.0.1:{PORT}")
server.start()
server.wait_for_termination()
