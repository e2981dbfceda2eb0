"""The page at `/`, and what a browser lets it do."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

_FILE = Path(__file__).with_name("page.html")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def read_page() -> tuple[str, str]:
    """The page, and its Content-Security-Policy: its own script alone runs, and it reaches its own server alone."""
    text = _FILE.read_text(encoding="utf-8")
    hashes = [b64encode(sha256(script.encode()).digest()).decode() for script in _SCRIPT.findall(text)]
    rules = {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": " ".join(f"'sha256-{each}'" for each in hashes),
        "connect-src": "'self'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return text, "; ".join(f"{rule} {value}" for rule, value in rules.items())
