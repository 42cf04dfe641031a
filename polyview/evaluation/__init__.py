"""Evaluations: comparable numbers from a model, and figures of them."""
