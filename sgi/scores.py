"""Human-normalised scores of Atari games, with the references that Atari 100k uses.

A human-normalised score (HNS) is 0 for random play and 1 for the human score. For
aggregates over games see `polyview.rl.aggregates`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from polyview.errors import InputError, nearest


class Reference(NamedTuple):
    """Mean raw scores of a game.

    Attributes:
      random, human: references for normalisation.
      spr, der: two agents after 100,000 steps: SPR (Schwarzer et al. 2021) and
        data-efficient Rainbow (van Hasselt et al. 2019).
      data: the play in the DQN Replay data set.
    """

    random: float
    human: float
    spr: float
    der: float
    data: float


# All columns are from src/rlpyt_utils.py in the official code of SGI,
# github.com/mila-iqia/SGI. Other sets of SPR scores exist; the median HNS of this one
# is 0.444. SGI's scores for each game are not publicly confirmed.
SOURCE = "SGI's official code (src/rlpyt_utils.py of mila-iqia/SGI)"
GAMES = {
    "alien": Reference(227.8, 7127.7, 919.6, 739.9, 2766.8),
    "amidar": Reference(5.8, 1719.5, 159.6, 188.6, 1557.0),
    "assault": Reference(222.4, 742.0, 699.5, 431.2, 1946.1),
    "asterix": Reference(210.0, 8503.3, 983.5, 470.8, 4131.8),
    "bank_heist": Reference(14.2, 753.1, 370.1, 51.0, 907.7),
    "battle_zone": Reference(2360.0, 37187.5, 14472.0, 10124.6, 26459.0),
    "boxing": Reference(0.1, 12.1, 30.5, 0.2, 84.1),
    "breakout": Reference(1.7, 30.5, 15.6, 1.9, 157.9),
    "chopper_command": Reference(811.0, 7387.8, 1130.0, 861.8, 3678.1),
    "crazy_climber": Reference(10780.5, 35829.4, 36659.8, 16185.3, 118080.2),
    "demon_attack": Reference(152.1, 1971.0, 636.4, 508.0, 6517.0),
    "freeway": Reference(0.0, 29.6, 24.6, 27.9, 26.8),
    "frostbite": Reference(65.2, 4334.7, 1811.0, 866.8, 1643.6),
    "gopher": Reference(257.6, 2412.5, 593.4, 349.5, 8241.0),
    "hero": Reference(1027.0, 30826.4, 5602.8, 6857.0, 16233.5),
    "jamesbond": Reference(29.0, 302.8, 378.7, 301.6, 777.7),
    "kangaroo": Reference(52.0, 3035.0, 3876.0, 779.3, 14125.1),
    "krull": Reference(1598.0, 2665.5, 3810.3, 2851.5, 7238.5),
    "kung_fu_master": Reference(258.5, 22736.3, 14135.8, 14346.1, 26637.9),
    "ms_pacman": Reference(307.3, 6951.6, 1205.3, 1204.1, 4171.5),
    "pong": Reference(-20.7, 14.6, -3.8, -19.3, 18.3),
    "private_eye": Reference(24.9, 69571.3, 20.2, 97.8, 1415.2),
    "qbert": Reference(163.9, 13455.0, 791.8, 1152.9, 12275.1),
    "road_runner": Reference(11.5, 7845.0, 13062.4, 9600.0, 47880.5),
    "seaquest": Reference(68.4, 42054.7, 603.8, 354.1, 3233.5),
    "up_n_down": Reference(533.4, 11693.2, 7307.8, 2877.4, 15677.9),
}
# The protocol of such scores; `step` counts steps of training.
PROTOCOL: dict[str, Any] = {
    "step": 100_000,
    "episodes": 100,
    "epsilon": 0.001,
    "cap": 27_000,
}
# Median and mean HNS over the 26 games, as paperswithcode lists them for the paper; not
# checked against the paper itself.
PUBLISHED = {"SGI-M/L": (0.753, 1.598), "SGI-None": (0.343, 0.565)}


def human_normalised(game: str, score: ArrayLike) -> np.ndarray:
    """Scale raw scores so that random play is 0 and the human 1.

    (score - random) / (human - random). Raises InputError if the table lacks the game.
    """
    if game not in GAMES:
        near = nearest(game, GAMES)
        raise InputError(f"no human score of {game!r} is known{near}")
    random, human, *_ = GAMES[game]
    return (np.asarray(score) - random) / (human - random)
