def write_report(rows, file): pass
