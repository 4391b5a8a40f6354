# seisserve on onnxruntime with CUDA. From the root of the checkout:
#   docker build -f docker/gpu.Dockerfile -t seisserve-gpu .
# The onnxruntime-gpu in constraints.txt is built for CUDA 13 and cuDNN 9: the base image must have both.
ARG BUILD_IMAGE=python:3.12-slim
ARG BASE_IMAGE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

FROM ${BUILD_IMAGE} AS build
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
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PATH=/opt/seisserve/bin:${PATH}
# onnxruntime's own builds since 1.29 report their use to Microsoft unless they are told not to.
ENV ORT_DISABLE_TELEMETRY=1
# Ubuntu drops old versions of its packages: one that is fixed here could not be installed a month later.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/seisserve
# The mounts keep the wheel itself out of the layers.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    set -- /wheels/seisserve-*.whl \
    && pip install --no-cache-dir --constraint /constraints.txt "$1[serving-gpu]"
COPY docker/healthcheck.py /opt/seisserve/healthcheck.py
RUN groupadd --gid 10001 seisserve \
    && useradd --no-log-init --no-create-home --uid 10001 --gid 10001 seisserve
# As numbers: Kubernetes can then tell that this is not root.
USER 10001:10001
EXPOSE 8500 8501
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "/opt/seisserve/healthcheck.py", "127.0.0.1:8500"]
# Without a GPU this ends with a message: it never goes on, unnoticed, on the processor.
ENTRYPOINT ["seisserve", "serve", "--host", "0.0.0.0", "--provider", "cuda"]
CMD []
