"""`python -m runtime batch`: a folder or file of pages, answered by one worker a GPU on one machine or many.

command.py       a run from its options to its summary
job.py           what a run is
source/          where pages come from
plan.py          pages in shards, listed once
cluster.py       Ray, which gives shards to workers
worker.py        answers a shard and writes it
answering.py     opens pages and asks the engine
turns.py         whether pages of several shards are answered together
journal.py       what was begun, so that a page that kills its worker is found
columns.py       columns of the output
shards.py        its files
storage.py       folders at a path or URL
model_folder.py  a copy of the model, once a machine
"""
