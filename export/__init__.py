"""Adds ONNX graphs to a model folder; their weights stay in its safetensors files."""
