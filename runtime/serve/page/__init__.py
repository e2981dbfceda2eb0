"""The page at `/`: ask about images and PDFs in a browser."""
