"""Rewards from preferences: captions of what worlds show, pairs of them, and judges."""
