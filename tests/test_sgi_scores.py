"""Human-normalised scores, and their known aggregates."""

import numpy as np
import pytest

from polyview.errors import InputError
from polyview.rl.aggregates import AGGREGATES
from sgi.scores import GAMES, human_normalised


def column(name):
    """float[1, 26]: a column of the table, normalised."""
    return np.array([[human_normalised(g, getattr(GAMES[g], name)) for g in GAMES]])


@pytest.mark.parametrize(
    "name, median, mean, iqm",
    [
        ("der", 0.161, 0.285, 0.142),
        ("spr", 0.444, 0.621, 0.427),
        ("data", 1.139, 2.199, 1.615),
        ("random", 0.0, 0.0, 0.0),
        ("human", 1.0, 1.0, 1.0),
    ],
)
def test_published_columns_have_their_known_aggregates(name, median, mean, iqm):
    games = column(name)
    assert games.shape == (1, 26)
    found = [AGGREGATES[key](games)[()] for key in ("median", "mean", "IQM")]
    assert [round(float(value), 3) for value in found] == [median, mean, iqm]


def test_normalised_scores_match_hand_computed_values():
    assert human_normalised("pong", 0) == pytest.approx(20.7 / 35.3)
    np.testing.assert_allclose(human_normalised("freeway", [14.8, 29.6]), [0.5, 1.0])
    with pytest.raises(InputError, match="did you mean 'ms_pacman'"):
        human_normalised("mspacman", 0.0)
