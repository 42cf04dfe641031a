"""Losses of features, independent of models and data.

`base` defines the protocol of an objective and `negatives` the one computation over the
global batch. The other modules hold the losses, as pure functions of arrays.
"""
