"""seisserve: seismic deep learning as a service.

from seisserve import Client

with Client("localhost:8500") as client:      # Client() runs the models in this process
    picks = client.pick(stream)               # obspy Stream, or arrays with a start time
"""

from seisserve._version import __version__
from seisserve.annotations import Annotation, to_stream
from seisserve.client import Client
from seisserve.detections import Detection
from seisserve.errors import (
    BundleError,
    MissingExtra,
    ModelNotFound,
    SeisserveError,
    ServerError,
    UsageError,
    WaveformError,
)
from seisserve.manifest import Manifest
from seisserve.picks import Pick
from seisserve.restoration import Restoration, Restored
from seisserve.results import Processed, Waveforms
from seisserve.tables import Detections, Picks
from seisserve.traces import Trace, from_arrays, from_stream
from seisserve.transport import FakeTransport, Transport

__all__ = [
    "Annotation",
    "BundleError",
    "Client",
    "Detection",
    "Detections",
    "FakeTransport",
    "Manifest",
    "MissingExtra",
    "ModelNotFound",
    "Pick",
    "Picks",
    "Processed",
    "Restoration",
    "Restored",
    "SeisserveError",
    "ServerError",
    "Trace",
    "Transport",
    "UsageError",
    "WaveformError",
    "Waveforms",
    "__version__",
    "from_arrays",
    "from_stream",
    "to_stream",
]
