"""Checkpoint in, 4/8-bit or NF4 checkpoint out, calibrated on document images."""
