"""Pages that compare runs and work offline.

read     run directories: config, metrics, results
tables   rows of text and numbers that compare runs, and notes on them
figures  curves of metrics logged in training
html     tables, pictures and whole documents
page     the page that compares runs
"""
