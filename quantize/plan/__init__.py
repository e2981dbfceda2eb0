"""Estimates what fits on a GPU, from a config alone."""
