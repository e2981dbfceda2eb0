"""How commands speak: one-line errors, progress on stderr, folders that one run writes at a time."""
