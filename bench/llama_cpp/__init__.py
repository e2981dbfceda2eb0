"""Speed on a CPU against llama.cpp: the same model, quantized by each, run in turns."""
