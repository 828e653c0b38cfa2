"""A bundle's report: one HTML file that opens offline."""
