"""What every request passes before its route: access log, API key, limit of its body."""
