"""Tensors in shared memory: a caller on the same machine says where they are in place of sending them.

The extension of KServe V2 that Triton's clients know (`tritonclient.utils.shared_memory`): a caller registers a region
of a segment under a name, and the parameters of a tensor name the region. Segments are read and written as files and
never mapped: a caller who cuts a mapped one short ends the process that looks at it.
"""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.proto import inference_wire_pb2 as wire
from seisserve_serving.calls import Call
from seisserve_serving.errors import Overloaded, PermissionDenied

__all__ = ["NOTHING_SHARED", "REGION", "Memory", "Regions", "shared_bytes"]

FOLDER = Path("/dev/shm")  # where Linux keeps the segments
REGION, OFFSET, SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
MOST_REGIONS = 128  # each holds a file open
LOCAL = ("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")
Parameters = Mapping[str, wire.InferParameter]


class _Place(NamedTuple):
    """Bytes in a region that is registered under that name."""

    region: str
    offset: int
    size: int


class _Region:
    """Part of a segment. file: its descriptor, which is closed when nothing uses the region any more."""

    def __init__(self, key: str, offset: int, size: int) -> None:
        self.key, self.offset, self.size = key, offset, size
        self.file = _opened(key)
        weakref.finalize(self, os.close, self.file)


class Regions:
    """What callers have registered, each for itself: the names of one token mean nothing to another.

    largest: bytes of a tensor.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self._regions: dict[tuple[str, str], _Region] = {}
        self._lock = threading.Lock()

    def register(self, name: str, key: str, offset: int, size: int, call: Call) -> None:
        """Know `size` bytes from `offset` of the segment `key` by a name. Raises UsageError, PermissionDenied,
        Overloaded."""
        _check_local(call)
        if not name:
            raise UsageError("name is empty; the region must have one")
        if not size:
            raise UsageError("byte_size is 0; it must be at least 1")
        region = _Region(key, offset, size)
        there = os.fstat(region.file).st_size
        if offset + size > there:
            raise UsageError(f"offset {offset} and byte_size {size} reach beyond {key!r}, which has {there} bytes")
        with self._lock:
            if (call.user, name) in self._regions:
                raise UsageError(f"name is {name!r}; it is registered already: unregister it first, or take another")
            if len(self._regions) >= MOST_REGIONS:
                raise Overloaded(f"{MOST_REGIONS} regions are registered, and no more are held: unregister some", None)
            self._regions[call.user, name] = region

    def unregister(self, name: str, call: Call) -> None:
        """Forget a region, or with an empty name all; one that is not there does no harm. Raises PermissionDenied."""
        _check_local(call)
        with self._lock:
            for user, other in list(self._regions):
                if user == call.user and name in ("", other):
                    del self._regions[user, other]

    def status(self, name: str, call: Call) -> wire.SystemSharedMemoryStatusResponse:
        """The region of that name, or all. Raises UsageError if it is not there, PermissionDenied."""
        _check_local(call)
        if name:
            self.find(name, "name", call)
        with self._lock:
            found = {
                other: wire.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=other, key=region.key, offset=region.offset, byte_size=region.size
                )
                for (user, other), region in self._regions.items()
                if user == call.user and name in ("", other)
            }
        return wire.SystemSharedMemoryStatusResponse(regions=found)

    def find(self, name: str, what: str, call: Call) -> _Region:
        """The caller's region. Raises UsageError that names `what`, PermissionDenied."""
        _check_local(call)
        region = self._regions.get((call.user, name))
        if region is None:
            raise UsageError(f"{what} is {name!r}; no such region is registered")
        return region


class Memory(NamedTuple):
    """Shared memory as one call sees it. regions: None if callers may not use it.

    All methods raise UsageError that names the tensor, and PermissionDenied for callers from other machines.
    """

    regions: Regions | None
    call: Call

    def read(self, tensor: wire.ModelInferRequest.InferInputTensor) -> bytes:
        """The bytes of an input, as they are now."""
        what = f"input {tensor.name!r}"
        region, begin, size = self._reach(tensor.parameters, what)
        content = os.pread(region.file, size, begin)
        if len(content) < size:
            raise UsageError(f"{what}: {region.key!r} has been cut short; {size - len(content)} bytes are missing")
        return content

    def check(self, request: wire.ModelInferRequest) -> None:
        """Before anything is read or computed: that all places exist, and no output is wanted at two."""
        for tensor in request.inputs:
            if REGION in tensor.parameters:
                self._reach(tensor.parameters, f"input {tensor.name!r}")
        names = [output.name for output in request.outputs]
        for output in request.outputs:
            if REGION in output.parameters:
                self._reach(output.parameters, f"output {output.name!r}")
                if names.count(output.name) > 1:
                    raise UsageError(f"output {output.name!r} is there twice")

    def write(
        self, array: NDArray[Any], tensor: wire.ModelInferResponse.InferOutputTensor, parameters: Parameters
    ) -> None:
        """Put the bytes of an output where the parameters want it, and say so in its message."""
        what = f"output {tensor.name!r}"
        region, begin, size = self._reach(parameters, what)
        content: Any = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        if content.nbytes > size:
            raise UsageError(f"{what}: {SIZE} is {size}; the output has {content.nbytes} bytes")
        missing = begin + content.nbytes - os.fstat(region.file).st_size
        if missing > 0:  # written all the same, it would grow, where its owner does not look
            raise UsageError(f"{what}: {region.key!r} has been cut short; {missing} bytes are missing")
        try:
            os.pwrite(region.file, content, begin)
        except OSError as error:  # the system has no memory left
            raise UsageError(f"{what}: {region.key!r} cannot be written: {error.strerror}") from error
        for name in (REGION, OFFSET, SIZE):
            if name in parameters:
                tensor.parameters[name].CopyFrom(parameters[name])
        tensor.parameters[SIZE].int64_param = content.nbytes

    def _reach(self, parameters: Parameters, what: str) -> tuple[_Region, int, int]:
        """The region that a tensor's parameters name; where in its file the tensor begins, and its bytes."""
        if self.regions is None:
            raise UsageError(f"{what}: parameter {REGION!r} is not supported")
        place = _place(parameters, what)
        region = self.regions.find(place.region, f"{what}: {REGION}", self.call)
        if place.offset + place.size > region.size:
            raise UsageError(
                f"{what}: {OFFSET} {place.offset} and {SIZE} {place.size} reach beyond the region {place.region!r}, "
                f"which has {region.size} bytes"
            )
        if place.size > self.regions.largest:
            raise UsageError(f"{what}: {SIZE} is {place.size}; it may be {self.regions.largest}, like a message")
        return region, region.offset + place.offset, place.size


NOTHING_SHARED = Memory(None, Call())


def shared_bytes(request: wire.ModelInferRequest) -> int:
    """How many bytes a request reads and writes there."""
    places = [tensor.parameters for tensor in request.inputs] + [tensor.parameters for tensor in request.outputs]
    return sum(max(place[SIZE].int64_param, 0) for place in places if REGION in place and SIZE in place)


def _place(parameters: Parameters, what: str) -> _Place:
    """Where the parameters of a tensor say that it is. Raises UsageError that names `what` and the parameter."""
    for name, kind in ((REGION, "string_param"), (OFFSET, "int64_param"), (SIZE, "int64_param")):
        found = parameters[name].WhichOneof("parameter_choice") if name in parameters else None
        if found != kind and (found or name != OFFSET):
            raise UsageError(f"{what}: parameter {name!r} is {found or 'missing'}; it must be a {kind}")
    offset = parameters[OFFSET].int64_param if OFFSET in parameters else 0
    size = parameters[SIZE].int64_param
    if offset < 0 or size < 1:
        raise UsageError(f"{what}: {OFFSET} is {offset} and {SIZE} is {size}; they must be at least 0 and 1")
    return _Place(parameters[REGION].string_param, offset, size)


def _check_local(call: Call) -> None:
    if not call.peer.startswith(LOCAL):
        raise PermissionDenied(
            "shared memory is for callers on the same machine, by way of loopback or the Unix socket"
        )


def _opened(key: str) -> int:
    """A descriptor of the segment, for reading and writing. Raises UsageError."""
    name = key.removeprefix("/")
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise UsageError(f"key is {key!r}; it must be the name of a shared memory segment")
    try:
        file = os.open(FOLDER / name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"key is {key!r}; the segment cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UsageError(f"key is {key!r}; this is no shared memory segment")
    return file
