"""Everything that a GPU can tell of this project, in a few minutes: `python -m bench.gpu`."""
