"""Exported graphs against the eager modules they were traced from."""
