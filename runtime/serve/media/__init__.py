"""Images, PDFs and videos of a request: taken from data URIs or allowed domains, within limits.

limits.py     how large they may be
addresses.py  which domains may be asked, at which addresses
fetch.py      one download
opening.py    `Media`: from what a client sends to pictures and videos
"""

from runtime.serve.media.limits import MediaLimits
from runtime.serve.media.opening import Media

__all__ = ["Media", "MediaLimits"]
