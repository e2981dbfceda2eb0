"""Opens the folders, runs every document through all models, and keeps the results as they come."""
