"""What a batch reads. Each kind of source lists its parts once, and opens the pages of a part in the worker.

page.py       a page with its prompt, and the parts that a source is listed in
open.py       which kind a path or URL is
folder.py     images and PDFs in a folder and those below it
lines.py      lines of a JSONL file
table.py      rows of Parquet files
"""
