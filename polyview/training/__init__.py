"""One loop for every objective.

learner     what the loop drives;  trainer: the learner of a data pipeline
train       the loop: log, evaluate, save, stop;  nonfinite: the dump and its replay
step        the train state and one pure step;  optimizer, microbatch, prefetch
banner      what a run says before it starts;  dry_run, cost, flops, peak: what it costs
"""
