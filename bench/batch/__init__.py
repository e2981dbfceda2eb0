"""Ray Data with one and two workers, against the engine called directly."""
