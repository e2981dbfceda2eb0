"""The commands that measure every number in README and docs."""
