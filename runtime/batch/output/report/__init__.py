"""Shows a run as an HTML page: page.py writes it, samples.py chooses the answers in it, figures.py its bars."""
