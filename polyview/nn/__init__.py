"""Modules that know no loss: encoders, projectors, towers and photometry."""
