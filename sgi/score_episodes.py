"""What an agent earns: whole games, a hundred at once, their raw scores.

The protocol of Atari 100k as in the official code: up to 30 frames without action, then
the agent with a random action now and then, its noise off, to the end of the game or
27,000 steps. A lost life changes nothing.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result
from polyview.model import merge_module
from sgi import agent
from sgi.atari import FRAME_SKIP, NOOPS, SIZE
from sgi.prepare import PREPROCESSING
from sgi.recording import HISTORY
from sgi.scores import PROTOCOL

# What the agents of all games see, uint8[n, 84, 84], and the time, to actions int[n].
Policy = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """The scores of agents; `episodes` games each, of `cap` steps at most.

    An action is random with probability `epsilon`.
    """

    episodes: int = PROTOCOL["episodes"]
    epsilon: float = PROTOCOL["epsilon"]
    cap: int = PROTOCOL["cap"]

    def __post_init__(self):
        check_range(1, 10_000, episodes=self.episodes)
        check_range(0.0, 1.0, epsilon=self.epsilon)
        check_range(1, 27_000, cap=self.cap)

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Play with the agents of several seeds (`sgi.learner.Agents`).

        Raises InputError without gymnasium.
        """
        del mesh  # agents are few and small: one device plays
        game, seeds = model.game, model.seeds
        epsilon = 1.0 if model.random else self.epsilon
        environment = _games(game, self.episodes, self.cap)
        arrays = model.params, model.statistics
        scores = []
        for number, seed in enumerate(tqdm(seeds, "evaluating", delay=3)):
            of_seed = jax.tree.map(lambda x, n=number: x[n], arrays)
            policy = _Remembering(model.graph, of_seed, seed, epsilon, self.episodes)
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


def play(environment, seeds: np.ndarray, policy: Policy, cap: int) -> np.ndarray:
    """The raw scores `[n]` of one game for each seed, of `cap` steps at most.

    environment: an AtariVectorEnv of n games. What it plays behind the end of a game,
    until the last one has ended, is not counted.
    """
    frames, _ = environment.reset(seed=seeds)
    scores, going = np.zeros(len(seeds)), np.ones(len(seeds), bool)
    for time in range(cap):
        actions = policy(frames[:, 0], time)
        frames, rewards, over, cut_off, _ = environment.step(actions)
        scores += going * rewards
        going &= ~(over | cut_off)
        if not going.any():
            break
    return scores


class _Remembering:
    """An agent as a policy: it keeps the last frames of each game, on the device."""

    def __init__(self, graph, model, seed: int, epsilon: float, games: int):
        self._graph, self._model = graph, model
        self._rest = np.uint32(seed), np.float32(epsilon)
        self._stacks = jnp.zeros((games, SIZE, SIZE, HISTORY), jnp.uint8)

    def __call__(self, frames: np.ndarray, time: int) -> np.ndarray:
        actions, self._stacks = _act(
            self._graph, *self._model, self._stacks, frames, np.int32(time), *self._rest
        )
        return np.asarray(actions)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _act(graph, params, statistics, stacks, frames, time, seed, epsilon):
    """Actions on the stacks, one frame further, and these."""
    stacks = jnp.concatenate([stacks[..., 1:], frames[..., None]], -1)
    module = merge_module(graph, params, statistics)
    # 0 and 1 are the engine's, 2 is for play in training.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 3), time)
    return agent.act(module, stacks, noise=None, epsilon=epsilon, key=key), stacks


def _games(game: str, count: int, cap: int):
    """So many games at once, without the wrapper's defaults that change the play."""
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
