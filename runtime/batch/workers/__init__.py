"""What runs in each worker process.

process.py       the process, as Ray starts it
life.py          what a process that ends leaves for the next
worker.py        answers a shard and writes it
answering.py     opens pages and asks the engine
turns.py         whether pages of several shards are answered together
model_folder.py  a copy of the model, once a machine
"""
