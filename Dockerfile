# Parley on a CPU with its embedded engines: no model is downloaded, nothing else need run.
#
#     docker build -t parley . && docker run --rm --network host parley
#
# Calls travel on UDP ports that the system chooses, one a call and address: `--network host` lets them through as they are.

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/parley
ENV PATH=/opt/parley/bin:$PATH
WORKDIR /app
# First what changes seldom: this layer holds while only code changes.
COPY pyproject.toml README.md LICENSE ./
RUN pip install .
COPY config config
COPY static static
COPY media_server media_server
COPY signaling signaling
RUN pip install --no-deps --force-reinstall .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 parley
COPY --from=build /opt/parley /opt/parley
USER parley
# One decoder is one thread: more calls, not faster ones, use the other cores.
ENV PATH=/opt/parley/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 PARLEY_SERVER__HOST=0.0.0.0 PARLEY_SERVER__PORT=8080
EXPOSE 8080
# 503 while the engines are warming up, which urlopen takes as a failure.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PARLEY_SERVER__PORT'] + '/health', timeout=2)"]
CMD ["parley", "serve"]
