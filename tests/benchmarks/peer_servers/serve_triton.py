"""The Triton that nvidia-pytriton brings, with its Python backend and dynamic batching: gRPC."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytriton
from network import INSTANCES, MOST, NAME, PORT, Network, dimensions, find_libraries

CONFIG = """
backend: "python"
max_batch_size: {most}
input {{ name: "{input.name}" data_type: TYPE_FP32 dims: {inputs} }}
output {{ name: "{output.name}" data_type: TYPE_FP32 dims: {outputs} }}
instance_group {{ count: {instances} kind: KIND_CPU }}
dynamic_batching {{ }}
"""

here, binaries = Path(__file__).parent, Path(pytriton.__file__).parent / "tritonserver"
network, folder = Network(), Path(tempfile.mkdtemp())
backends, model = folder / "backends", folder / "models" / NAME
shutil.copytree(binaries / "backends", backends)
stub = f"python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
shutil.copy(binaries / stub, backends / "python")
(model / "1").mkdir(parents=True)
shutil.copy(here / "triton_model.py", model / "1" / "model.py")
(model / "config.pbtxt").write_text(CONFIG.format(
    most=MOST, instances=INSTANCES, input=network.input, output=network.output, inputs=dimensions(network.input),
    outputs=dimensions(network.output),
))  # fmt: skip
find_libraries(binaries.parents[1] / "nvidia_pytriton.libs")
os.environ["PYTHONPATH"] = str(here)
program = str(binaries / "bin" / "tritonserver")
os.execv(program, [
    program, f"--model-repository={model.parent}", f"--backend-directory={backends}", "--grpc-address=127.0.0.1",
    f"--grpc-port={PORT}", "--allow-http=false", "--allow-metrics=false",
])  # fmt: skip
