# Two images: `docker build .` makes the one that computes on CPUs, `docker build --target cuda .` the one for GPUs
# (`docker run --gpus all`). Both hold the server and the shipped models, run as a user without a name or rights, and
# need nothing to write to but /tmp: `docker run --read-only --tmpfs /tmp`; for GPUs `--tmpfs /tmp:exec`, since Triton's
# launchers run there.
FROM python:3.12.11-slim-bookworm AS build
# The distribution mends its packages under new versions and drops the old ones.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
RUN python -m venv /venv
COPY pyproject.toml constraints.txt setup.py README.md LICENSE ./
COPY server server
COPY models models

FROM build AS build-cpu
# PyTorch's index of CPU builds, which its installation page names. Without it the image holds CUDA, too: gigabytes.
ARG TORCH_CPU_INDEX
RUN /venv/bin/pip install --no-cache-dir --constraint constraints.txt \
    ${TORCH_CPU_INDEX:+--extra-index-url "$TORCH_CPU_INDEX"} --editable . \
    && python -m compileall -q server models

FROM build AS build-cuda
RUN /venv/bin/pip install --no-cache-dir --constraint constraints.txt --editable . \
    && python -m compileall -q server models

FROM python:3.12.11-slim-bookworm AS base
WORKDIR /app
ENV ANYTIME_HOST=0.0.0.0 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
# A GPU server takes minutes until it is warm.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m CMD ["/venv/bin/python", "-m", "server.health"]
ENTRYPOINT ["/venv/bin/python", "-m", "server"]

FROM base AS cuda
# Triton compiles its launchers when the server starts.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build-cuda /venv /venv
COPY --from=build-cuda /app /app
COPY clients/web /app/clients/web
ENV TRITON_CACHE_DIR=/tmp/triton
USER 10001:10001

FROM base AS cpu
COPY --from=build-cpu /venv /venv
COPY --from=build-cpu /app /app
COPY clients/web /app/clients/web
USER 10001:10001
