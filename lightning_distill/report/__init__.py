"""What a sweep ends in: results.csv, a table in the terminal, and a page that a browser shows."""
