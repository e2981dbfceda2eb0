"""Documents: what they are, where they come from, and how answers about them are scored.

document.py  an image, its prompt and the true answers
sources/     opens documents: a folder of images, a PDF, a JSONL file, a Hugging Face dataset, or rendered ones
rendered/    draws documents in Korean and English, with their ground truth
splits.py    which split a document belongs to: training, calibration or evaluation
images.py    opens image files
pages.py     which picture of an image file is read
levels.py    samples of any depth as 8 bits
scores.py    exact match, character error rate and ANLS
reader/      the bundled document reader, a checkpoint
"""

from pathlib import Path

READER = Path(__file__).parent / "reader"
"""Folder of the bundled document reader, an ordinary Hugging Face checkpoint of the EXAONE 4.5 architecture."""
