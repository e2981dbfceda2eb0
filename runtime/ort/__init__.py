"""ONNX Runtime: sessions, device memory, the KV cache, and the file formats shared with export."""
