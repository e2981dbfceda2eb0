"""Model families: which modules a checkpoint has and what transformers builds for them."""
