"""The forward passes that are traced: ONNX Runtime's operators over the checkpoint's own bytes."""
