"""Quantization solvers: pure tensors in, codes and scales out."""
