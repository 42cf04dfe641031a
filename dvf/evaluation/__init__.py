"""Evaluations of models of the future, against roll-outs from the same states."""
