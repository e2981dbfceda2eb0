"""A comparison as a page, on the screen and as JUnit XML."""
