"""`python -m runtime serve`: an HTTP server with OpenAI's API."""
