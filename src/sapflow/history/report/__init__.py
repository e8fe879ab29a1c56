"""A run, or a comparison of several, as one HTML page that opens offline."""
