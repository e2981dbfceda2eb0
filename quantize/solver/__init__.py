"""Quantization solvers: from a weight and a Hessian to codes and scales."""
