"""Speed of the engine that answers many requests at once."""
