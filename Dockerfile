# The image holds the server and the shipped models. `docker run --gpus all` lets it use GPUs: its torch includes CUDA.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt setup.py README.md LICENSE ./
COPY server server
COPY models models
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --constraint constraints.txt --editable .

FROM python:3.12-slim
# Triton compiles its launchers when the server starts, so the image needs a C compiler.
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
