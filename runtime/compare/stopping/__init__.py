"""Whether a candidate still stops: predictions of control tokens, and how greedy answers end."""
