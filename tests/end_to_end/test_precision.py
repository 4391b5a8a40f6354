"""A server at another precision and a client in this process at that precision: the same picks, the same provenance."""

from __future__ import annotations

from pathlib import Path

import pytest
from client.small_bundles import add_int8, repository
from client.waveforms import record

from seisserve import Client
from seisserve_serving.repository import load
from seisserve_serving.server import Server


@pytest.mark.parametrize("precision", ["float32", "int8", "best"])
def test_client_and_server_agree_at_every_precision(tmp_path: Path, precision: str) -> None:
    root = add_int8(repository(tmp_path), "eqtransformer").folder.parents[1]
    for name in ("cred", "deepdenoiser", "recovery"):
        (root / name / "1" / "manifest.json").unlink()  # they have no other precision
    server = Server(load(root, precision=precision), port=0)
    server.start()
    try:
        with Client(server.address) as there, Client(repository=root, precision=precision) as here:
            ours, theirs = (client.pick(record(), model="eqtransformer") for client in (here, there))
            listed = [set(client.model("eqtransformer").manifest.artifacts) for client in (here, there)]
    finally:
        server.stop(grace_s=1)
    assert repr(list(ours)) == repr(list(theirs)) != "[]"
    assert ours.provenance == theirs.provenance
    assert listed == [{"onnx", "onnx_int8"} if precision == "float32" else {"onnx_int8"}] * 2
