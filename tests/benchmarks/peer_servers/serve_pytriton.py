"""PyTriton: functions in this process behind Triton, with dynamic batching: gRPC."""

import logging

import numpy as np
from network import INSTANCES, MOST, NAME, PORT, Network, dimensions, find_libraries, free_port
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def function():
    network = Network()

    @batch
    def run(**inputs):
        return {network.output.name: network(inputs[network.input.name])}

    return run, network


logging.basicConfig(level=logging.WARNING)
find_libraries()
made = [function() for _ in range(INSTANCES)]
network = made[0][1]
ports = {"http_port": free_port(), "metrics_port": free_port()}
with Triton(config=TritonConfig(grpc_port=PORT, grpc_address="127.0.0.1", **ports)) as triton:
    triton.bind(
        model_name=NAME,
        infer_func=[run for run, _ in made],
        inputs=[Tensor(name=network.input.name, dtype=np.float32, shape=dimensions(network.input))],
        outputs=[Tensor(name=network.output.name, dtype=np.float32, shape=dimensions(network.output))],
        config=ModelConfig(max_batch_size=MOST, batcher=DynamicBatcher()),
    )
    triton.serve()
