"""Documents: what they are, where they come from, and how answers about them are scored."""

from pathlib import Path

READER = Path(__file__).parent / "reader"
"""Folder of the bundled document reader, an ordinary Hugging Face checkpoint of the EXAONE 4.5 architecture."""
