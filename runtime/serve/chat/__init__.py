"""A chat request from its body to its response: prompts for the engine, its answers whole or as a stream."""
