# The edge install with the server: no PyTorch. Mount an exported model folder at /model.
# ONNX Runtime's GPU wheel on PyPI is built for CUDA 13; the base image has its libraries and cuDNN 9.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY quantize quantize
COPY export export
COPY runtime runtime
COPY calib_data calib_data
COPY console console
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve]'

USER 65534
EXPOSE 8000
STOPSIGNAL SIGTERM
# Loading a 33 B model takes minutes: only then does a failed check count.
HEALTHCHECK --start-period=15m --interval=10s --timeout=5s \
    CMD ["/venv/bin/python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["/venv/bin/python", "-m", "runtime", "serve", "--model", "/model", "--host", "0.0.0.0", "--port", "8000"]
