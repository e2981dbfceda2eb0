"""`python -m runtime batch`: a folder or file of pages, answered by one worker a GPU on one machine or many.

command.py  a run from its options to its summary
job.py      what a run is
source/     where pages come from
plan.py     pages in shards, listed once
check.py    what is refused before anything starts
cluster.py  Ray, on this machine or many
pool.py     workers, which Ray Data gives shards to
workers/    what runs in each of them
output/     what they write, and what is counted in it
storage.py  folders at a path or URL
copies.py   local copies of files at URLs
"""
