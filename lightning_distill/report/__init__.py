"""The results of a sweep: results.csv, a table in the terminal, and an HTML page."""
