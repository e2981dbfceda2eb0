"""How large the images, PDFs and videos of a request may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MediaLimits:
    """Limits of what a client may send or have fetched."""

    images: int = 64
    """Images of a request, pages of PDFs among them."""
    videos: int = 4
    """Videos of a request."""
    pixels: int = 64_000_000
    """Pixels of an image, and of a video's frame, as its header has them."""
    video_pixels: int = 20_000_000_000
    """Pixels of all frames of a video, which are decoded to reach those that are read: 10 minutes of 720p."""
    pages: int = 64
    """Pages of a PDF."""
    bytes: int = 64 << 20
    """Bytes of one image, PDF or video."""
    seconds: float = 20.0
    """Time of one download, redirects included. A look-up of a name is not cut short, but what follows it is."""
    redirects: int = 3
    """Redirects that a download follows."""
