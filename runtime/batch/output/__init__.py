"""What a batch writes.

columns.py      columns: those of every run, and one for each field of a JSON schema
json_schema.py  Arrow types of a JSON schema
shards.py       files, one for each shard
journal.py      what was begun, so that a page that kills its worker is found
summary.py      counts over all files
fields.py       the values of a field, for the summary
counting.py     distributions and frequent values in bounded memory
screen.py       prints the summary
report/         writes it as an HTML page
"""
