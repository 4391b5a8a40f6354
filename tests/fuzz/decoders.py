"""Looks for bytes that break a decoder: every one must read them, or refuse them with an error of its own.

    python tests/fuzz/decoders.py [--seconds 60] [NAME...]

With atheris (`pip install atheris`) new bytes are led by the code that they reach; without it good bytes are changed at
random, which finds less. What breaks a decoder is printed with its traceback, and kept in `crash-*` beside it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None
if HAS_ATHERIS and len(sys.argv) > 1 and sys.argv[1] == "--one":
    import atheris

    instrumented = atheris.instrument_imports(include=["seisserve", "seisserve_serving", "obspy.io.mseed"])
else:
    instrumented = contextlib.nullcontext()
with instrumented:
    import numpy as np
    from fuzz.hostile import mutated_bytes
    from google.protobuf.message import DecodeError

    from seisserve import bundle, manifest, miniseed, reading, segments, tensors
    from seisserve.deferred import Recent
    from seisserve.errors import SeisserveError, WaveformError
    from seisserve.messages import from_message
    from seisserve.proto import inference_wire_pb2 as v2
    from seisserve.proto import seismic_pb2 as seismic
    from seisserve.proto import tensorflow_serving_wire_pb2 as tfs
    from seisserve.proto.tensorflow_wire_pb2 import TensorProto
    from seisserve_serving import kserve_api, loading, onnx_check, rest_json, rest_kserve, rest_tensorflow, text_config
    from seisserve_serving.signatures import Signature, TensorSpec

MOST_MB, HANGS_S = 3000, 120
KINDS = [np.dtype(kind) for kind in ("<f4", "<f8", "<f2", "i1", "<i4", "<i8", "u1", "<u8", "?", "O")]


class Decoder(NamedTuple):
    """decode: of bytes; refuses them by SeisserveError or DecodeError. good: bytes to begin from."""

    decode: Callable[[bytes], object]
    good: Callable[[], list[bytes]]


def _at(decode: Callable[[Path], object], name: str) -> Callable[[bytes], object]:
    """Of a file, in a folder of its own."""
    folder = Path(tempfile.mkdtemp())

    def of_bytes(content: bytes) -> None:
        (folder / name).write_bytes(content)
        decode(folder / name)

    return of_bytes


def _tensor(content: bytes) -> None:
    proto = TensorProto.FromString(content[1:])
    tensors.to_array(proto, "x", KINDS[(content or b"\0")[0] % len(KINDS)])


def _kserve(content: bytes) -> None:
    request = v2.ModelInferRequest.FromString(content[1:])
    kind = KINDS[(content or b"\0")[0] % len(KINDS)]
    kserve_api.check_parameters(request)
    names = sorted({tensor.name for tensor in request.inputs})
    arrays = kserve_api.arrays(request, Signature("m", "s", tuple(TensorSpec(name, kind, None) for name in names), ()))
    response = kserve_api.answer(request, _Named(), arrays)  # type: ignore[arg-type]  # all that it asks for
    assert response.SerializeToString() or not arrays


class _Named:
    name, version = "m", 1


def _trace(content: bytes) -> None:
    trace = from_message(seismic.Trace.FromString(content))
    if trace.sampling_rate_hz > 1:  # otherwise there is too much to compute
        segments.segments([trace], 100.0, "ZNE")


def _miniseed_file(path: Path) -> None:
    scanned = miniseed.scan(path)
    if scanned is not None:
        for trace in scanned.traces(Recent()):
            np.asarray(trace.samples[:])
    with contextlib.suppress(WaveformError):
        reading.read_file(path)


def _json(content: bytes) -> None:
    for kind in (rest_tensorflow._Predict, rest_tensorflow._Examples, rest_kserve._Infer, rest_kserve._Change):
        with contextlib.suppress(SeisserveError):
            found = rest_json.document(content, kind)
            for raw in (getattr(found, "instances", None), getattr(found, "inputs", None)):
                if isinstance(raw, rest_kserve.Raw):
                    for dtype in KINDS:
                        with contextlib.suppress(SeisserveError):
                            rest_json.array(raw, dtype, "x")


def _records(path: Path) -> None:
    for record in loading.read_records(path):
        tfs.PredictionLog.FromString(record)


def _text(path: Path) -> None:
    for read in (text_config.read_models, text_config.read_batching):
        with contextlib.suppress(SeisserveError):
            read(path)


def _of_targets(name: str) -> Callable[[], list[bytes]]:
    """Good requests of a method, without its server."""

    def good() -> list[bytes]:
        from fuzz import targets

        if name == "miniseed":
            return targets.RECORDS
        rng = random.Random(0)
        if name == "tensor":
            requests = [targets._predict(rng) for _ in range(8)]
            return [
                bytes([KINDS.index(tensors.TYPES[tensor.dtype][0])]) + tensor.SerializeToString()
                for request in requests
                for tensor in request.inputs.values()
            ]
        if name == "kserve":
            return [
                bytes([KINDS.index(kserve_api.DATATYPES[request.inputs[0].datatype][0])]) + request.SerializeToString()
                for request in (targets._infer(rng) for _ in range(8))
            ]
        waveforms = [targets._waveforms(rng) for _ in range(8)]
        return [trace.SerializeToString() for one in waveforms for trace in one.traces]

    return good


def _json_bodies() -> list[bytes]:
    return [
        b'{"instances": [[[0, 1.5, 2]]], "signature_name": "x"}',
        b'{"inputs": {"a": [[1, 2]], "b": [{"b64": "AAAA"}]}}',
        b'{"examples": [{"a": [0.5], "b": "x"}], "context": {}}', b'{"inputs": [NaN, -Infinity, "\\u0001NaN"]}',
        b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "data": [1]}], "parameters": {"x": true}}',
    ]  # fmt: skip


def _golden_file() -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        content = io.BytesIO()
        save(content, input=np.zeros((1, 4, 3), np.float32), output=np.ones((1, 4, 2), np.float32))
        found.append(content.getvalue())
    return found


def _stored(content: bytes) -> bytes:
    """A zip file with these bytes as both arrays: its checksums would hide what is in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("input.npy", content)
        file.writestr("output.npy", content)
    return made.getvalue()


def _array_file() -> list[bytes]:
    content = io.BytesIO()
    np.save(content, np.zeros((1, 2, 3), np.float32))
    return [content.getvalue()]


def _shipped(name: str) -> Callable[[], list[bytes]]:
    return lambda: [path.read_bytes() for path in sorted(bundle.shipped().glob(f"*/1/{name}"))][:3]


def _record_file() -> list[bytes]:
    import struct

    content = b""
    for body in (b"", b"\n\0", b"x" * 100):
        head = struct.pack("<Q", len(body))
        content += head + struct.pack("<I", loading._masked_crc(head)) + body
        content += struct.pack("<I", loading._masked_crc(body))
    return [content]


TEXTS = [
    b'model_config_list { config { name: "a" base_path: "a" version_labels { key: "x" value: 1 } '
    b"model_version_policy { specific { versions: 1 } } } }",
    b"max_batch_size { value: 32 } allowed_batch_sizes: 4 batch_timeout_micros { value: 5 }",
]
DECODERS = {
    "tensor": Decoder(_tensor, _of_targets("tensor")), "kserve": Decoder(_kserve, _of_targets("kserve")),
    "trace": Decoder(_trace, _of_targets("trace")),
    "miniseed": Decoder(reading.read_miniseed, _of_targets("miniseed")),
    "miniseed_file": Decoder(_at(_miniseed_file, "x.mseed"), _of_targets("miniseed")),
    "json": Decoder(_json, _json_bodies), "text_config": Decoder(_at(_text, "models.config"), lambda: TEXTS),
    "manifest": Decoder(lambda content: manifest.decode(content, "manifest"), _shipped("manifest.json")),
    "golden": Decoder(_at(lambda path: bundle.golden(path.parent), "golden.npz"), _golden_file),
    "golden_array": Decoder(lambda content: _GOLDEN(_stored(content)), _array_file),
    "onnx": Decoder(_at(lambda path: onnx_check.check_onnx(path, one_pass=True), "model.onnx"), _shipped("model.onnx")),
    "records": Decoder(_at(_records, "warmup"), _record_file),
}  # fmt: skip
_GOLDEN = _at(lambda path: bundle.golden(path.parent), "golden.npz")


def _try(decoder: Decoder, content: bytes) -> None:
    with warnings.catch_warnings(), contextlib.suppress(SeisserveError, DecodeError):
        warnings.simplefilter("ignore")
        decoder.decode(content)


def _one(name: str, folder: Path, seconds: int) -> None:
    """Look for bytes that break a decoder, in this process, which they may end."""
    decoder = DECODERS[name]
    good = decoder.good()
    for content in good:
        decoder.decode(content)  # which must not refuse them
    if HAS_ATHERIS:
        for number, content in enumerate(good):
            (folder / f"good{number}").write_bytes(content)
        options = [f"-max_total_time={seconds}", f"-rss_limit_mb={MOST_MB}", f"-timeout={HANGS_S}", "-max_len=8192"]
        atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(folder)], lambda data: _try(decoder, data))
        atheris.Fuzz()
        return
    rng, until, count = random.Random(1), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        content = mutated_bytes(rng.choice(good), rng)
        (folder / "last").write_bytes(content)
        _try(decoder, content)
        count += 1
    print(f"stat::number_of_executed_units: {count}", file=sys.stderr)


@click.command()
@click.option("--seconds", default=60, show_default=True, help="For each decoder.")
@click.argument("names", nargs=-1)
def main(seconds: int, names: tuple[str, ...]) -> None:
    if not HAS_ATHERIS:
        print("atheris is not installed: good bytes are changed at random")
    broken = []
    for name in names or DECODERS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-W", "ignore", __file__, "--one", name, folder, str(seconds)]
            found = subprocess.run(command, capture_output=True, text=True, errors="replace")
        count = next(
            (line.split()[-1] for line in found.stderr.splitlines() if "number_of_executed_units" in line), "?"
        )
        print(f"{name:15} {count:>9} inputs  {'broken' if found.returncode else 'nothing found'}", flush=True)
        if found.returncode:
            broken.append(name)
            print(found.stdout[-3000:], found.stderr[-3000:], sep="\n")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _one(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
