"""Raw scores of agents over whole games, a hundred at once.

The protocol of Atari 100k as in the official code: up to 30 frames without action, then
the agent without noise but with occasional random actions, to the end of the game or
27,000 steps. A lost life changes nothing.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result
from polyview.model import merge_module
from sgi import agent
from sgi.atari import FRAME_SKIP, NOOPS, SIZE, rom
from sgi.games import canonical_name
from sgi.network import Network
from sgi.prepare import PREPROCESSING
from sgi.recording import HISTORY
from sgi.scores import PROTOCOL

# Maps the frames of all games, uint8[n, 84, 84], and the time to actions int[n].
Policy = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Scores agents over `episodes` games each, of at most `cap` steps.

    An action is random with probability `epsilon`.
    """

    episodes: int = PROTOCOL["episodes"]
    epsilon: float = PROTOCOL["epsilon"]
    cap: int = PROTOCOL["cap"]

    def __post_init__(self) -> None:
        check_range(1, 10_000, episodes=self.episodes)
        check_range(0.0, 1.0, epsilon=self.epsilon)
        check_range(1, 27_000, cap=self.cap)

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Play with the agents of several seeds (`sgi.learner.Agents`).

        Raises InputError if the game cannot be loaded or gymnasium is not installed.
        """
        del mesh  # agents are few and small: one device is enough
        game, seeds = model.game, model.seeds
        epsilon = 1.0 if model.random else self.epsilon
        environment = _games(game, self.episodes, self.cap)
        arrays = model.params, model.statistics
        scores = []
        for number, seed in enumerate(tqdm(seeds, "evaluating", delay=3)):
            weights = jax.tree.map(lambda x, n=number: x[n], arrays)
            policy = _Remembering(model.graph, weights, seed, epsilon, self.episodes)
            starts = np.random.default_rng(seed).integers(2**31, size=self.episodes)
            scores.append(play(environment, starts, policy, self.cap).tolist())
        numbers = {
            "step": model.step,
            "game": game,
            "seeds": list(seeds),
            "scores": scores,
            "mean": np.mean(scores, 1).tolist(),
            "epsilon": epsilon,
            "episodes": self.episodes,
            "cap": self.cap,
            "protocol": {
                "emulator": f"ale-py {metadata.version('ale-py')}",
                "sticky": 0.0,
                "noops": NOOPS,
                **PREPROCESSING,
            },
        }
        score = float(np.mean(numbers["mean"]))
        return Result(numbers, summary=f"score {score:.1f}", columns={"score": score})


def play(environment: Any, seeds: np.ndarray, policy: Policy, cap: int) -> np.ndarray:
    """Return the raw scores `[n]` of one game per seed, of at most `cap` steps.

    environment: an AtariVectorEnv of n games. It plays on after a game has ended, until
    the last one has; that play is not counted.
    """
    frames, _ = environment.reset(seed=seeds)
    scores, running = np.zeros(len(seeds)), np.ones(len(seeds), bool)
    for time in range(cap):
        actions = policy(frames[:, 0], time)
        frames, rewards, over, cut_off, _ = environment.step(actions)
        scores += running * rewards
        running &= ~(over | cut_off)
        if not running.any():
            break
    return scores


class _Remembering:
    """An agent as a policy that keeps the last frames of each game on the device."""

    def __init__(
        self,
        graph: nnx.GraphDef,
        model: tuple[dict, dict],
        seed: int,
        epsilon: float,
        games: int,
    ):
        self._graph, self._model = graph, model
        self._rest = np.uint32(seed), np.float32(epsilon)
        self._stacks = jnp.zeros((games, SIZE, SIZE, HISTORY), jnp.uint8)

    def __call__(self, frames: np.ndarray, time: int) -> np.ndarray:
        actions, self._stacks = _act(
            self._graph, *self._model, self._stacks, frames, np.int32(time), *self._rest
        )
        return np.asarray(actions)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _act(
    graph: nnx.GraphDef,
    params: dict,
    statistics: dict,
    stacks: jax.Array,
    frames: jax.Array,
    time: jax.Array,
    seed: jax.Array,
    epsilon: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Append `frames` to the stacks; return the actions and the new stacks."""
    stacks = jnp.concatenate([stacks[..., 1:], frames[..., None]], -1)
    module = cast(Network, merge_module(graph, params, statistics))
    # 3 keys this noise: 0 and 1 are the engine's, 2 is that of play in training.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 3), time)
    return agent.act(module, stacks, noise=None, epsilon=epsilon, key=key), stacks


def _games(game: str, count: int, cap: int) -> Any:
    """Return `count` games at once, without the wrapper's defaults that change play."""
    game = canonical_name(game)
    rom(game)  # an error here, not the end of the process
    try:
        from ale_py import AtariVectorEnv
    except ImportError as error:
        raise InputError(
            f"evaluation needs gymnasium ({error}): pip install gymnasium==1.4.0"
        ) from None
    return AtariVectorEnv(
        game,
        count,
        stack_num=1,
        reward_clipping=False,
        use_fire_reset=False,
        noop_max=NOOPS,
        max_num_frames_per_episode=cap * FRAME_SKIP + NOOPS,
    )
