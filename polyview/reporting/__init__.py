"""Pages that compare runs, and work offline.

read     the directory of a run: config, metrics, results
tables   what compares runs, as rows of text and numbers, and notes on them
figures  curves of what the runs logged
html     tables, pictures and whole documents
page     the page of any runs
"""
