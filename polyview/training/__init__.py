"""One loop for every objective.

learner     the protocol that the loop drives;  trainer: learns from a data pipeline
train       the loop: log, evaluate, save, stop;  nonfinite: dump and replay a bad step
step        the train state and one pure step;  optimizer, microbatch, prefetch
banner      the summary printed before a run;  dry_run, cost, flops, peak: its cost
"""
