"""What a batch reads. Each kind of source lists its parts once, and opens the pages of a part in the worker.

page.py          a page with its prompt, and the parts that a source is listed in
open.py          which kind a path or URL is, and whether its content has changed
folder.py        images and PDFs in a folder and those below it
page_counter.py  counts the pages of PDFs, in another process
lines.py         lines of a JSONL file
table.py         rows of Parquet files
rows.py          reads these from where a part before has ended
picture.py       opens an image at a path or URL
"""
