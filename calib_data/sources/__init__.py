"""Where documents come from. Each kind of source lists its documents; `open.py` opens those of a split.

open.py       `open_documents`: any source, one split; `open_pictures`: all pictures of a file
folder.py     a folder of images
pdf.py        the pages of a PDF
pdf_fonts.py  fonts that neither a PDF nor the system has
jsonl.py      the lines of a JSONL file; `open_questions`: all of them, in order; `parse_question`: one
dataset.py    the rows of a Hugging Face dataset
fields.py     the names of their keys and columns
"""

from calib_data.sources.jsonl import Question, open_questions, parse_question
from calib_data.sources.open import open_documents, open_pictures, shortfall
from calib_data.splits import split_of_picture, split_of_prompt

__all__ = [
    "Question",
    "open_documents",
    "open_pictures",
    "open_questions",
    "parse_question",
    "shortfall",
    "split_of_picture",
    "split_of_prompt",
]
