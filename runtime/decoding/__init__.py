"""From a prompt to the tokens of an answer: forward passes, sampling and speculative decoding."""
