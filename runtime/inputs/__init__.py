"""Turns images and videos into embeddings."""
