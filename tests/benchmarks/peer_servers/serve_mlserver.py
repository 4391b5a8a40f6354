"""MLServer with a process for each session: gRPC."""

import asyncio

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from network import INSTANCES, NAME, PORT, Network, free_port


class Served(MLModel):
    async def load(self):
        self._network = Network()
        return True

    async def predict(self, payload):
        made = self._network(NumpyCodec.decode_input(payload.inputs[0]))
        output = NumpyCodec.encode_output(self._network.output.name, made)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main():
    # Its adaptive batching is left out: it doubles the time of one caller and gives many nothing, since tensors travel
    # as lists of numbers.
    server = MLServer(Settings(
        host="127.0.0.1", http_port=free_port(), grpc_port=PORT, metrics_endpoint=None, parallel_workers=INSTANCES,
        grpc_max_message_length=2**30, debug=False,
    ))  # fmt: skip
    await server.start([ModelSettings(name=NAME, implementation=Served)])


if __name__ == "__main__":
    asyncio.run(main())
