"""What a sweep ends in: results.csv, a table in the terminal, and a page that a browser shows."""

from lightning_distill.report.page import write_report
from lightning_distill.report.tables import print_table, write_csv

__all__ = ["print_table", "write_csv", "write_report"]
