"""KServe's Python server: gRPC. It has no batching of its own; the sessions run in threads side by side."""

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor

from kserve import InferOutput, InferResponse, Model, ModelServer
from network import INSTANCES, NAME, PORT, Network, free_port


class Served(Model):
    def __init__(self):
        super().__init__(NAME)
        self._threads, self._networks = ThreadPoolExecutor(INSTANCES), queue.SimpleQueue()
        for _ in range(INSTANCES):
            self._networks.put(Network())
        self.ready = True

    def _run(self, windows):
        network = self._networks.get()
        try:
            return network.output.name, network(windows)
        finally:
            self._networks.put(network)

    async def predict(self, payload, headers=None, response_headers=None):
        windows = payload.inputs[0].as_numpy()
        name, made = await asyncio.get_running_loop().run_in_executor(self._threads, self._run, windows)
        output = InferOutput(name, list(made.shape), "FP32")
        output.set_data_from_numpy(made, binary_data=True)
        return InferResponse(payload.id, NAME, [output], use_binary_outputs=True)


ModelServer(http_port=free_port(), grpc_port=PORT, enable_latency_logging=False).start([Served()])
