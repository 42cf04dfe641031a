"""Comparing fine-tuned runs, as `sgi.report` does.

read      runs that `sgi.finetune` left in folders
methods   which runs belong to one method, and its scores over games
notes     what makes runs incomparable
tables    the table of scores
figures   learning curves; aggregates with their intervals
page      the whole report as one HTML document
"""
