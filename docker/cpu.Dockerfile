# seisserve on onnxruntime, for processors. From the root of the checkout:
#   docker build -f docker/cpu.Dockerfile -t seisserve .
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt hatchling
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY client client
COPY serving serving
COPY export export
COPY training training
COPY models models
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${BASE_IMAGE}
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
# onnxruntime's own builds since 1.29 report their use to Microsoft unless they are told not to.
ENV ORT_DISABLE_TELEMETRY=1
# The mounts keep the wheel itself out of the layers.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    set -- /wheels/seisserve-*.whl \
    && pip install --no-cache-dir --constraint /constraints.txt "$1[serving]"
COPY docker/healthcheck.py /opt/seisserve/healthcheck.py
RUN groupadd --gid 10001 seisserve \
    && useradd --no-log-init --no-create-home --uid 10001 --gid 10001 seisserve
# As numbers: Kubernetes can then tell that this is not root.
USER 10001:10001
EXPOSE 8500 8501
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "/opt/seisserve/healthcheck.py", "127.0.0.1:8500"]
# Arguments of the container come after these: a repository such as /models, options. None: the shipped models.
ENTRYPOINT ["seisserve", "serve", "--host", "0.0.0.0"]
CMD []
