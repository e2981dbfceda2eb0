"""The stages of `python -m bench.gpu`: each measures one thing in a process of its own."""
