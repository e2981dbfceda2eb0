"""What clients send and get: requests, answers and errors in OpenAI's shape."""
