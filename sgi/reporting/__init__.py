"""Compare fine-tuned runs; used by `sgi.report`.

read      the files that `sgi.finetune` writes in a run
seeds     runs that differ only in their seeds, as one
methods   which runs belong to one method, and its scores over games
notes     warnings about runs that are not comparable
tables    scores; aggregates over games; the probability of improvement
figures   learning curves; aggregates with their intervals; performance profiles
page      the whole report as one HTML document
"""
