"""Answers many requests on one device: continuous batching over the rows of one KV cache."""
