"""`python -m export verify`: compares every graph with the PyTorch module it was traced from."""
