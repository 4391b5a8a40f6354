"""BentoML with a process for each session: POST /raw, bytes of float32 there and back, their shape in a header.

From outside it takes arrays in JSON only, and batches those only: a route of its own is the fast way.
"""

import os
import sys

import bentoml
import numpy as np
from network import INSTANCES, PORT, Network
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def raw(request: Request):
    shape = [int(size) for size in request.headers["shape"].split(",")]
    windows = np.frombuffer(await request.body(), np.float32).reshape(shape)
    return Response((await run_in_threadpool(network, windows)).tobytes(), media_type="application/octet-stream")


@bentoml.asgi_app(Starlette(routes=[Route("/raw", raw, methods=["POST"])]))
@bentoml.service(workers=INSTANCES)
class Served:
    pass


if __name__ == "__main__":
    command = ["-m", "bentoml", "serve", "serve_bentoml:Served", "--host", "127.0.0.1", "--port", str(PORT)]
    os.execv(sys.executable, [sys.executable, *command])
else:
    network = Network()
