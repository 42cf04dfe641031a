"""Training raises the bounds to their theoretical order (Shidani et al. 2024)."""

import importlib
from pathlib import Path

import pytest

from polyview.config.file import load_config
from polyview.errors import InputError
from polyview.objectives.bounds import gaussian_information

CONFIG = Path(__file__).parents[1] / "configs" / "polyview_gaussian.py"
# The bounds of one short run scatter by about this much, in nats.
SCATTER = 0.02


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(CONFIG.parents[1])
    return importlib.import_module("benchmarks.gaussian")


@pytest.mark.slow
def test_trained_bounds_are_ordered_and_below_the_truth(benchmark, tmp_path):
    views, deviation = 4, 0.5
    bound = {}
    for objective in benchmark.OBJECTIVES:
        config = load_config(
            f"{CONFIG}:objective={objective},views={views},steps=300,"
            f"deviation={deviation}"
        )
        bound[objective], error = benchmark.measure(config, tmp_path / objective, 20)
        assert error < SCATTER
    pair, all_views = (gaussian_information(m, deviation) for m in (2, views))
    assert bound["multi_crop"] < pair + SCATTER
    assert bound["geometric"] < pair + SCATTER
    assert pair < bound["arithmetic"]
    assert bound["sufficient_statistics"] < all_views + SCATTER
    # With this many negatives the first two differ only by thousandths.
    assert bound["multi_crop"] < bound["geometric"] + 0.005
    assert bound["geometric"] < bound["arithmetic"] < bound["sufficient_statistics"]


def test_the_config_refuses_an_unknown_objective():
    with pytest.raises(InputError, match="did you mean 'geometric'"):
        load_config(f"{CONFIG}:objective=geometry")
