"""How commands speak: the lowest layer, which every package may use.

errors.py    errors that a user can cause, one line each, and exit codes
streams.py   stdout and stderr, also where they cannot be written
progress.py  a line or a progress bar on stderr
files.py     finds and reads text and JSON files, with one clear error
text.py      one form for text that looks the same; short values in messages
locks.py     a folder that one run writes at a time
"""
