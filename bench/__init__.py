"""Measurements side by side; every number in README and docs comes from a command here."""
