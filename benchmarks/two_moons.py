"""Draw where a small network has been, and where it is sure, on two moons.

    python -m benchmarks.two_moons --output docs/static/two_moons.png

A network of 32 and 32 units learns two moons; maps show its maximum softmax and the
density of its activation patterns (figure 1 of Ji et al. 2022, by our estimate). Far
from the moons the network is sure, and has never been.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx

from polyview import errors
from polyview.evaluation.activation_patterns import Patterns
from polyview.evaluation.confidence import maximum_softmax
from polyview.evaluation.selective import auroc
from polyview.nn.mlp import ReluMlp
from polyview.objectives.supervised import cross_entropy

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (select the backend first)

SIDE = 3.0  # of the map, from the middle, in units of a moon's radius
FAR = 1.0  # from every training point, of points that count as far


class Moons(NamedTuple):
    """Points float32[n, 2] with labels, and scores of a grid of points."""

    points: np.ndarray
    labels: np.ndarray
    grid: np.ndarray
    softmax: np.ndarray
    density: np.ndarray
    far_softmax: float  # AUROC of training-like against far points
    far_density: float


class Classifier(nnx.Module):
    """An MLP with two ReLU layers of 32 units, and a linear layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.encoder = ReluMlp(
            size=1, in_channels=2, widths=(32, 32), dropout=0.0, rngs=rngs
        )
        self.last = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, points: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (logits[n, 2], h[n, 32])."""
        h, _ = self.encoder(points[:, None, None], train=False)
        return self.last(h), h


def moons(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points float32[count, 2] of two moons around the origin, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    angle = rng.uniform(0, np.pi, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    points = np.where(labels[:, None] == 0, upper, lower) - [0.5, 0.25]
    return (points + rng.normal(0, 0.1, points.shape)).astype(np.float32), labels


def measured(seed: int = 0, steps: int = 400, bandwidth: float = 1.0) -> Moons:
    """Train the network and score a grid of points. All numbers are ours."""
    points, labels = moons(1000, seed)
    graph, params = nnx.split(Classifier(nnx.Rngs(seed)))
    optimiser = optax.adam(1e-2)

    def loss(params: nnx.State) -> jax.Array:
        logits, _ = nnx.merge(graph, params)(jnp.asarray(points))
        return cross_entropy(logits[:, None], jnp.asarray(labels)).mean()

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        params, state = carry
        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimiser.init(params)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=steps))(start)

    def scores(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, h = nnx.merge(graph, params)(jnp.asarray(points))
        return maximum_softmax(np.asarray(logits)), patterns.log_density(
            np.asarray(h) > 0
        )

    logits, h = nnx.merge(graph, params)(jnp.asarray(points))
    right = np.asarray(logits).argmax(1) == labels
    patterns = Patterns.fit(np.asarray(h) > 0, right, bandwidth)
    line = np.linspace(-SIDE, SIDE, 61, dtype=np.float32)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    softmax, density = scores(grid)
    away = np.linalg.norm(grid[:, None] - points[None], axis=-1).min(1) > FAR
    new_softmax, new_density = scores(moons(1000, seed + 1)[0])
    return Moons(
        points,
        labels,
        grid,
        softmax,
        density,
        auroc(new_softmax, softmax[away]),
        auroc(new_density, density[away]),
    )


def main() -> None:
    """Draw both maps, and print how well each score tells far points apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    flags = parser.parse_args()
    found = measured()
    figure, panels = pyplot.subplots(1, 2, figsize=(8, 4), layout="constrained")
    side = int(len(found.grid) ** 0.5)
    for panel, values, name, far in (
        (panels[0], found.softmax, "maximum softmax", found.far_softmax),
        (panels[1], found.density, "log density of patterns", found.far_density),
    ):
        image = panel.imshow(
            values.reshape(side, side), origin="lower", extent=(-SIDE, SIDE) * 2
        )
        for label, colour in ((0, "white"), (1, "black")):
            own = found.points[found.labels == label][:150]
            panel.plot(*own.T, ".", color=colour, markersize=2)
        panel.set_title(f"{name}: AUROC of far points {far:.2f}", fontsize=10)
        panel.set_xticks([])
        panel.set_yticks([])
        figure.colorbar(image, ax=panel, shrink=0.8)
    figure.savefig(flags.output, dpi=110)
    print(
        f"far points: softmax {found.far_softmax:.3f}, density {found.far_density:.3f}"
    )


if __name__ == "__main__":
    errors.run(main)
