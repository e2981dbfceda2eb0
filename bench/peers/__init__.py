"""Our 4-bit GPTQ beside llm-compressor's and AutoRound, each of them in an environment of its own."""
