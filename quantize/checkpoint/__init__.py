"""Checkpoints on disk: read a tensor at a time, written a block at a time."""
