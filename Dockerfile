# The server with the shipped models. For a GPU, run with `--gpus all`: the same torch wheel carries CUDA.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml setup.py README.md LICENSE ./
COPY server server
COPY models models
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --editable .

FROM python:3.12-slim
# Triton compiles its launcher on the machine that it runs on.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build /venv /venv
COPY --from=build /app /app
COPY clients/web /app/clients/web
WORKDIR /app
RUN useradd --create-home anytime
USER anytime
EXPOSE 8000
HEALTHCHECK --start-period=10m CMD ["/venv/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["/venv/bin/python", "-m", "server", "--host", "0.0.0.0"]
