"""Our 4-bit GPTQ against llm-compressor's and AutoRound, each of them in an environment of its own."""
