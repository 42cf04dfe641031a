"""Mathematics that knows no model and no data: features in, loss out.

`base` says what an objective is, `negatives` holds the one computation over the global
batch, and the other modules the losses, as pure functions of arrays.
"""
