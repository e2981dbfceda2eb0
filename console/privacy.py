"""Keeps libraries from sending anything to their makers. To be imported before them; what users have set stays."""

from __future__ import annotations

import os

# From 1.29 on, ONNX Runtime's wheels send events with names of models, and keep an id of the machine, from its import
# on (its pull requests 27379 and 29843). Windows has only an API for it, which `runtime.ort.sessions` calls.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
