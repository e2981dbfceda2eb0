"""Shows a comparison: as a page (report.html), on the screen and as JUnit XML."""
