"""Comparing fine-tuned runs, as `sgi.report` does.

read      runs: what `sgi.finetune` left in a folder
methods   which runs are of one method, and its scores over games
notes     what makes runs incomparable
tables    the table of scores
figures   learning curves; aggregates with their intervals
page      all of it as one HTML document
"""
