"""What every server here serves: an ONNX file of one input and one output, on one thread.

Told by environment variables: ONNX (the file), NAME (of the model), INSTANCES (sessions side by side), MOST (windows of
one batch), PORT. The servers run each in an environment of its own, which has nothing of this project.
"""

import os
import socket
import sysconfig

import onnxruntime

ONNX, NAME, PORT = os.environ["ONNX"], os.environ["NAME"], int(os.environ["PORT"])
INSTANCES, MOST = int(os.environ["INSTANCES"]), int(os.environ["MOST"])


class Network:
    """One session. Called with windows [n, samples, components] float32, it gives probabilities of that kind."""

    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(ONNX, options, providers=["CPUExecutionProvider"])
        self.input, self.output = self._session.get_inputs()[0], self._session.get_outputs()[0]

    def __call__(self, windows):
        return self._session.run([self.output.name], {self.input.name: windows})[0]


def dimensions(tensor):
    """Of a window; -1 where the file leaves it open."""
    return [size if isinstance(size, int) else -1 for size in tensor.shape[1:]]


def free_port():
    """For the doors of a server that nobody calls."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def find_libraries(*folders):
    """Triton's stub is a Python of its own: it must find the library of this one and not another of the same version,
    and this one's packages, which it takes from the first python3 in PATH."""
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([sysconfig.get_config_var("LIBDIR"), *map(str, folders)])
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
