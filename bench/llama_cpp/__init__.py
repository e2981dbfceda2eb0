"""Speed on a CPU beside llama.cpp: the same model, quantized by each, run in turns."""
