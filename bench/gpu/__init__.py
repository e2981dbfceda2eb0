"""Correctness, speed and memory on a GPU, in a few minutes: `python -m bench.gpu`."""
