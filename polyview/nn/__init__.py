"""Modules independent of the loss: encoders, projectors, towers, photometry."""
