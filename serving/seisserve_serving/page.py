"""The page for people: which models there are, in what state, and how they are meant to be used."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from urllib.parse import quote

from seisserve import __version__, manifest
from seisserve.errors import SeisserveError
from seisserve.manifest import Manifest
from seisserve.proto import inference_wire_pb2 as inference
from seisserve.proto import seismic_pb2 as seismic
from seisserve_serving.calls import Call
from seisserve_serving.front import Methods
from seisserve_serving.kserve_api import INFERENCE_SERVICE
from seisserve_serving.rest_routes import Reply
from seisserve_serving.seismic_api import SEISMIC_SERVICE

__all__ = ["page"]

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid #8886; padding: .4rem .8rem .4rem 0; text-align: left; vertical-align: top }
.bad { color: #c33; font-weight: bold }
code { background: #8882; padding: .1rem .3rem }
pre { background: #8882; padding: .8rem; overflow-x: auto }
"""
COLUMNS = ("model", "version", "state", "task", "takes", "thresholds", "what it is")


def page(services: Mapping[str, Methods], call: Call, *, draining: bool, metrics: bool) -> Reply:
    """The page, without anything from elsewhere."""
    index = services[INFERENCE_SERVICE]["RepositoryIndex"][0](inference.RepositoryIndexRequest(), call)
    rows = "".join(_row(services, call, one) for one in index.models)
    links = [("/readyz", "ready"), ("/healthz", "alive"), ("/v2", "server metadata")]
    if metrics:
        links.insert(0, ("/metrics", "metrics"))
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    notice = "<p class=bad>This server is about to stop.</p>" if draining else ""
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>seisserve</title><style>{STYLE}</style></head><body>
<h1>seisserve {escape(__version__)}</h1>
{notice}<p>{" · ".join(f'<a href="{path}">{name}</a>' for path, name in links)}</p>
<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>
<h2>Use it</h2>
<pre>curl --data-binary @record.mseed 'http://HOST:PORT/seisserve/v1/pick'
seisserve pick --server HOST:GRPC_PORT record.mseed</pre>
</body></html>
"""
    return Reply(text.encode(), "text/html; charset=utf-8", headers=HEADERS)


def _row(services: Mapping[str, Methods], call: Call, one: inference.RepositoryIndexResponse.ModelIndex) -> str:
    ready = one.state == "READY"
    name = escape(one.name)
    model = f'<a href="/v1/models/{quote(one.name)}/metadata">{name}</a>' if ready else name
    state = escape(one.state) if ready else f"<span class=bad>{escape(one.state)}</span> {escape(one.reason)}"
    found = _manifest(services, call, one.name, int(one.version)) if ready and one.version.isdecimal() else None
    cells = [model, escape(one.version), state, *(_about(found) if found else ["", "", "", ""])]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _manifest(services: Mapping[str, Methods], call: Call, name: str, version: int) -> Manifest | None:
    """Of a bundle that the caller may use; None for any other model."""
    request = seismic.GetModelRequest(model=seismic.ModelSpec(name=name, version=version))
    try:
        asking = Call(call.request_id, peer=call.peer, user=call.user)  # the call itself is about no model
        asking.rights = call.rights
        response = services[SEISMIC_SERVICE]["GetModel"][0](request, asking)
    except SeisserveError:
        return None
    return manifest.decode(response.manifest_json, name)


def _about(found: Manifest) -> list[str]:
    thresholds = ", ".join(f"{name} {label.threshold:g}" for name, label in found.labels.items())
    seconds = found.window_samples / found.sampling_rate_hz
    takes = f"{found.components} at {found.sampling_rate_hz:g} Hz, windows of {seconds:g} s"
    return [", ".join(found.tasks), takes, escape(thresholds), escape(found.summary)]
