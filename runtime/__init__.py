"""Runs an exported model folder on ONNX Runtime. Never imports torch or transformers."""
