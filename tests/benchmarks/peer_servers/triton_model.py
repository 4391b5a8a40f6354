"""The model of `serve_triton.py`: what one instance of Triton's Python backend runs."""

import numpy as np
import triton_python_backend_utils as triton
from network import Network


class TritonPythonModel:
    def initialize(self, arguments):
        self._network = Network()

    def execute(self, requests):
        name, output = self._network.input.name, self._network.output.name
        windows = [triton.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
        made = self._network(np.concatenate(windows) if len(windows) > 1 else windows[0])
        parts = np.split(made, np.cumsum([len(one) for one in windows])[:-1])
        return [triton.InferenceResponse([triton.Tensor(output, part)]) for part in parts]
