"""Documents: what they are, where they come from, and how answers about them are scored."""
