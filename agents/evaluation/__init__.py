"""Evaluations of policies, and of actions as tokens."""
