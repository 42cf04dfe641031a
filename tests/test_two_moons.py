"""Far from two moons a network is sure of itself, and has never been."""

import importlib
from pathlib import Path

import numpy as np


def test_density_tells_far_points_apart_where_the_softmax_does_not(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    benchmark = importlib.import_module("benchmarks.two_moons")
    found = benchmark.measured(seed=0)
    assert found.far_density >= 0.80
    assert found.far_softmax <= 0.4
    # It has learnt the moons, and is sure of the corners of the map.
    assert len(found.grid) == 61**2 and found.softmax.max() > 0.999
    corners = np.abs(found.grid).min(axis=1) == benchmark.SIDE
    assert corners.sum() == 4 and np.median(found.softmax[corners]) > 0.99
