"""Time, memory and disk at the widths of EXAONE 4.5 33B on a CPU: `python -m bench.scale`."""
