"""Images and videos as the vision encoder reads them."""
