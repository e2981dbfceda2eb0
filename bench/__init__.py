"""The commands that measure every number in README and docs."""

import console.privacy  # noqa: F401 - before ONNX Runtime
