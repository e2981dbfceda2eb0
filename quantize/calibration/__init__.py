"""Calibration: documents as the model sees them, and what is recorded while they run through its blocks."""
