"""Compare fine-tuned runs; used by `sgi.report`.

read      the files that `sgi.finetune` writes in a run
methods   which runs belong to one method, and its scores over games
notes     warnings about runs that are not comparable
tables    the table of scores
figures   learning curves; aggregates with their intervals
page      the whole report as one HTML document
"""
