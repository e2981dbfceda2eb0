"""HTML pages without other files or network access: what the reports of several commands share."""
