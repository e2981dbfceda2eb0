"""PyTorch modules that are traced: ONNX Runtime's operators over the bytes of the checkpoint's own files."""
