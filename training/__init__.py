"""How the bundled reader was trained; not installed."""
