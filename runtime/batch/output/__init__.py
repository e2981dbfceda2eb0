"""What a batch writes.

columns.py   columns: those of every run, and one for each field of a JSON schema
shards.py    its files, one for each shard
journal.py   what was begun, so that a page that kills its worker is found
summary.py   counts over all files
screen.py    prints them
"""
