"""A learner that acts, in one file: a two-armed bandit.

    python -m tests.bandit WORKDIR [STEPS]

It keeps a value of each arm, explores one time in five, and depends only on (seed,
step). On resume, the saved actions are replayed to restore the arms' own state.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from polyview import errors
from polyview.devices import make_mesh, replicated
from polyview.evaluation.base import Result
from polyview.training.learner import Learner
from polyview.training.train import train


class Arms:
    """Arm 1 pays more; a reward depends on the number of pulls before it."""

    def __init__(self):
        self.pulls = 0

    def pull(self, arm: int) -> float:
        self.pulls += 1
        return float(np.random.default_rng(self.pulls).normal(arm, 0.5))


class Better:
    """The difference between the values of the better and the other arm."""

    def __call__(self, model, mesh) -> Result:
        gap = float(model["value"][1] - model["value"][0])
        return Result({"gap": gap}, summary=f"gap {gap:.2f}", columns={"gap": gap})


class Bandit(Learner):
    """Values of two arms: value += (reward - value) / 10."""

    acts = True
    evaluations = {"better": Better()}

    def __init__(self, config):
        self.config, self.steps, self.mesh = config, config.steps, make_mesh()

    def create(self, workdir):
        self.arms, self.actions = Arms(), np.zeros(self.steps + 1, np.int32)
        return {"value": jnp.zeros(2)}

    def template(self):
        shapes = {"value": ((2,), "float32"), "actions": ((self.steps + 1,), "int32")}
        everywhere = replicated(self.mesh)
        return {
            name: jax.ShapeDtypeStruct(*spec, sharding=everywhere)
            for name, spec in shapes.items()
        }

    def saved(self, state):
        return state | {"actions": jax.device_put(self.actions.copy())}

    def restored(self, workdir, saved, folder, step):
        self.create(workdir)
        self.actions = np.array(saved.pop("actions"))
        for arm in self.actions[:step]:
            self.arms.pull(int(arm))
        return saved

    def inputs(self, start):
        for time in range(start, self.steps):
            arm = int(self.actions[time])
            yield jax.device_put((np.int32(arm), np.float32(self.arms.pull(arm))))

    def take(self, state, inputs):
        arm, reward = inputs
        value = np.array(jax.device_get(state["value"]))
        value[arm] += (float(reward) - value[arm]) / 10
        explore = np.random.default_rng(self.arms.pulls).random() < 0.2
        self.actions[self.arms.pulls] = (
            self.arms.pulls % 2 if explore else value.argmax()
        )
        values = {"loss": jax.device_put(np.float32(-reward)), "healthy": np.True_}
        return {"value": jax.device_put(value)}, values


if __name__ == "__main__":
    config = {"steps": int(sys.argv[2]), "log_every": 50, "evaluate_every": 200}
    config |= {"checkpoint_every": 20, "keep": 3, "seed": 0}
    errors.run(lambda: train(Bandit(ConfigDict(config)), sys.argv[1]))
