"""The models that a server holds: the versions that can be called, and the state of every other one."""

from __future__ import annotations

import enum
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.client import DEFAULT_MODELS
from seisserve.errors import ModelNotFound, UsageError
from seisserve.manifest import Manifest, Task
from seisserve.runtime import TensorFlowRuntime
from seisserve.transport import Transport
from seisserve_serving.calls import Call
from seisserve_serving.errors import NotReady, Unavailable
from seisserve_serving.lanes import Batching, Lanes, Later, Queue
from seisserve_serving.plain import Plain
from seisserve_serving.signatures import DEFAULT, Signature, of_manifest
from seisserve_serving.until import Until, while_wanted

if TYPE_CHECKING:
    from seisserve_serving.repository import Repository

__all__ = ["Models", "Served", "State", "VersionState"]

KEPT = 16  # versions of a model that have ended and are still told of


class State(enum.IntEnum):
    """The life of a version, in TensorFlow Serving's words and numbers."""

    START = 10  # known, its turn to be loaded has not come
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40  # no new calls; those under way finish
    END = 50  # unloaded, or could not be loaded


class VersionState(NamedTuple):
    """Where a version is in its life. code: of gRPC, 0 unless it could not be loaded; message: why."""

    state: State
    code: int = 0
    message: str = ""


class Served:
    """A model version that is loaded and proven: its signatures by name, and the queue of each.

    folder: where it came from, None if it was made by hand. platform: what runs it, as Triton names that. loops:
    whether a run may take any time, and can be stopped.
    """

    def __init__(
        self, name: str, version: int, platform: str, networks: Mapping[str, tuple[Signature, Queue]],
        bundle: tuple[Manifest, Transport] | None = None, folder: Path | None = None, loops: bool = False,
    ) -> None:  # fmt: skip
        self._loops = loops
        self.name, self.version, self.platform, self.folder = name, version, platform, folder
        self.signatures = {key: signature for key, (signature, _) in networks.items()}
        self.queues = {key: queue for key, (_, queue) in networks.items()}
        self._bundle = bundle

    @property
    def has_manifest(self) -> bool:
        """Whether it is a bundle, which takes waveforms; other models can only be called by their signatures."""
        return self._bundle is not None

    @property
    def manifest(self) -> Manifest:
        """Raises UsageError for a model without one."""
        return self._parts()[0]

    @property
    def transport(self) -> Transport:
        """What computes it, past all queues. Raises UsageError for a model without a manifest."""
        return self._parts()[1]

    @property
    def queue(self) -> Queue:
        """The queue of its windows. Raises UsageError for a model without a manifest."""
        self._parts()
        return self.queues[DEFAULT]

    def of(self, call: Call) -> Served:
        """Itself; the call remembers what it is about. Raises PermissionDenied."""
        call.about(self.name, self.version)
        return self

    def signature(self, key: str) -> Signature:
        """A signature by name, the usual one if that is empty. Raises UsageError for one that the model hasn't."""
        found = self.signatures.get(key or DEFAULT)
        if found is None:
            raise UsageError(f"signature_name {key!r}: {self.name} has {', '.join(self.signatures)}")
        return found

    def predict(self, key: str, inputs: Mapping[str, NDArray[Any]], call: Call) -> dict[str, NDArray[Any]]:
        """Outputs of a signature for inputs that fit it, computed when the call's turn comes."""
        return self.later(key, inputs, call).result()

    def later(self, key: str, inputs: Mapping[str, NDArray[Any]], call: Call) -> Later[dict[str, NDArray[Any]]]:
        """As `predict`, without waiting."""
        signature, queue = self.signatures[key], self.queues[key]
        if queue.whole:
            asked = Until(inputs, while_wanted(call, self.name)) if self._loops else inputs
            return queue.run_later(asked, call)
        rows = set(map(len, inputs.values()))
        if len(rows) > 1:
            raise UsageError(f"inputs of {self.name} have {sorted(rows)} rows; they must have equally many")
        if rows == {0}:
            none = self._no_rows(signature, inputs)
            return Later(None, None, lambda outputs: none)
        if self._bundle is None:
            return queue.run_later(inputs, call)
        (windows,) = inputs.values()
        return queue.later(windows, call)

    def _no_rows(self, signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._bundle is None:
            return {
                tensor.name: np.zeros([max(size, 0) for size in tensor.shape or (0,)], tensor.dtype)
                for tensor in signature.outputs
            }
        (windows,) = inputs.values()
        samples = windows.shape[1]
        return {o.name: np.zeros((0, *o.window_shape(samples)), np.float32) for o in self.manifest.outputs}

    def _parts(self) -> tuple[Manifest, Transport]:
        if self._bundle is None:
            raise UsageError(
                f"model {self.name!r} has no manifest, so it takes no waveforms; call it with Predict or ModelInfer, "
                "or serve it as a bundle"
            )
        return self._bundle


class Models:
    """The versions that are served, by model name, and the state of each version that ever was.

    lanes: where all of them compute. served: only what can be called now; it is replaced, never changed, so whoever
    reads it sees one moment. repository: what loads and unloads them, None where they were added by hand.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.repository: Repository | None = None
        self.served: dict[str, dict[int, Served]] = {}
        self.labels: dict[str, dict[str, int]] = {}
        self._states: dict[str, dict[int, VersionState]] = {}
        self._gone: deque[tuple[str, int, VersionState]] = deque()
        self._told: list[Callable[[str, bool], None]] = []
        self._changing = threading.RLock()

    def add(self, version: int, manifest: Manifest, transport: Transport, batching: Batching | None = None) -> Served:
        """Serve a version of a bundle."""
        return self.publish(self.of_bundle(version, manifest, transport, batching))

    def of_bundle(
        self, version: int, manifest: Manifest, transport: Transport, batching: Batching | None = None,
        folder: Path | None = None,
    ) -> Served:  # fmt: skip
        """A version of a bundle with its queue, which nobody can call yet."""
        queue = self.lanes.queue(manifest, transport, batching)
        platform = "tensorflow_savedmodel" if isinstance(transport, TensorFlowRuntime) else "onnxruntime_onnx"
        networks = {key: (signature, queue) for key, signature in of_manifest(manifest).items()}
        return Served(manifest.name, version, platform, networks, (manifest, transport), folder)

    def of_plain(self, name: str, version: int, plain: Plain, batching: Batching | None, folder: Path) -> Served:
        """A version of a model without a manifest, which nobody can call yet. Its calls are computed together if there
        are batching parameters for it and all its tensors have a free batch axis; else one by one."""
        networks = {
            key: (signature, self.lanes.queue(signature, network, batching,
                                              whole=batching is None or not signature.batches))
            for key, (signature, network) in plain.networks.items()
        }  # fmt: skip
        return Served(name, version, plain.platform, networks, None, folder, plain.loops)

    def publish(self, served: Served) -> Served:
        """Let callers have a version, in place of one of the same number."""
        with self._changing:
            versions = {**self.served.get(served.name, {}), served.version: served}
            self.served = {**self.served, served.name: versions}
            self.note(served.name, served.version, State.AVAILABLE)
        if len(versions) == 1:
            self._tell(served.name, True)
        return served

    def withdraw(self, name: str, version: int) -> threading.Event:
        """Let nobody have a version any more. The event is set once the calls under way have let go of it, too."""
        gone = threading.Event()
        with self._changing:
            versions = dict(self.served[name])
            served = versions.pop(version)
            others = {key: value for key, value in self.served.items() if key != name}
            self.served = {**others, name: versions} if versions else others
            state = self.note(name, version, State.UNLOADING)
        if not versions:
            self._tell(name, False)

        def end() -> None:  # runs wherever the last call lets go, so it must not wait for a lock
            self._gone.append((name, version, state))
            gone.set()

        weakref.finalize(served, end).atexit = False
        return gone

    def note(self, name: str, version: int, state: State, code: int = 0, message: str = "") -> VersionState:
        """Remember the state of a version."""
        noted = VersionState(state, code, message)
        with self._changing:
            versions = {**self._states.get(name, {}), version: noted}
            ended = [number for number, found in sorted(versions.items()) if found.state is State.END]
            for number in ended[:-KEPT]:
                del versions[number]
            self._states = {**self._states, name: versions}
        return noted

    def forget(self, name: str, version: int) -> None:
        """Tell nothing more of a version that was never loaded."""
        with self._changing:
            versions = {number: state for number, state in self._states.get(name, {}).items() if number != version}
            self._states = {**self._states, name: versions}
            if not versions:
                del self._states[name]

    def states(self, name: str) -> dict[int, VersionState]:
        """The state of each version of a model. Raises ModelNotFound."""
        known = self.all_states()
        if name not in known:
            raise ModelNotFound(f"no model {name!r}; there is {', '.join(known) or 'none'}")
        return known[name]

    def all_states(self) -> dict[str, dict[int, VersionState]]:
        """The state of each version by model name."""
        with self._changing:
            while self._gone:
                name, version, state = self._gone.popleft()
                if self._states.get(name, {}).get(version) is state:
                    self.note(name, version, State.END)
            return self._states

    @property
    def failed(self) -> dict[str, dict[int, str]]:
        """Why versions could not be loaded, by model name."""
        found = {
            name: {version: state.message for version, state in versions.items() if state.code}
            for name, versions in self.all_states().items()
        }
        return {name: reasons for name, reasons in found.items() if reasons}

    def on_change(self, told: Callable[[str, bool], None]) -> None:
        """Call a function with a model's name and whether it can be called: for each model now, then at each change."""
        with self._changing:
            self._told.append(told)
            names = list(self.served)
        for name in names:
            told(name, True)

    def get(self, name: str, version: int = 0, task: Task = "picking", label: str = "") -> Served:
        """A version of a model: by number or label; otherwise the latest. An empty name means the default model for
        the task. Raises ModelNotFound, UsageError for a label that the model hasn't, NotReady, Unavailable while it
        loads."""
        chosen = name or self.default(task)
        served = self.served
        available = served.get(chosen, {})
        if label:
            labels = self.labels.get(chosen, {})
            if label not in labels and (available or chosen in self._states):
                raise UsageError(f"no label {label!r} of {chosen!r}; there is {', '.join(labels) or 'none'}")
            version = labels.get(label, 0)
        if not available:
            self._raise_if_loading(chosen, version)
            raise ModelNotFound(f"no model {chosen!r} is served; there is {', '.join(served) or 'none'}")
        if version and version not in available:
            self._raise_if_loading(chosen, version)
            if label:
                raise NotReady(f"label {label!r} of {chosen!r} is version {version}, which is not available")
            raise ModelNotFound(f"no version {version} of {chosen!r} is served; there is {sorted(available)}")
        return available[version or max(available)]

    def default(self, task: Task) -> str:
        """The model that is meant for a task when none is named: the usual one, else the first that can do it."""
        usual = DEFAULT_MODELS[task]
        fitting = [manifest.name for manifest in self.manifests() if task in manifest.tasks]
        return usual if usual in self.served else next(iter(fitting), usual)

    def manifests(self) -> list[Manifest]:
        """Of the latest version of each model that has one."""
        latest = [versions[max(versions)] for versions in self.served.values()]
        return [served.manifest for served in latest if served.has_manifest]

    @property
    def dead(self) -> str:
        """Which thread that the server cannot do without has died; empty while all are there."""
        if not self.lanes.alive:
            return "a computing thread has died"
        if self.repository is not None and not self.repository.alive:
            return "the thread that loads models has died"
        return ""

    def close(self) -> None:
        """Load nothing more. What is served goes on being served."""
        if self.repository is not None:
            self.repository.close()

    def _raise_if_loading(self, name: str, version: int) -> None:
        for number, state in self._states.get(name, {}).items():
            if state.state in (State.START, State.LOADING) and version in (0, number):
                raise Unavailable(f"version {number} of {name!r} is being loaded")

    def _tell(self, name: str, ready: bool) -> None:
        for told in list(self._told):
            told(name, ready)
