"""ONNX Runtime: sessions, device memory, the KV cache, and the contract with export."""
