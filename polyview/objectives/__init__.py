"""Losses of features, independent of models and data.

`base` defines the protocol of an objective; `negatives`, and `pairs` for two views,
hold the computations over the global batch, which `tiles` cuts into tiles. The other
modules hold the losses, as pure functions of arrays.
"""
