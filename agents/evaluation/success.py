"""Success of a policy that acts in its worlds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.sharding import Mesh

from agents.data import Context
from agents.environments.worlds import World, made_of
from agents.playing import Chance, Lane, play
from agents.recording import check_versions, installed
from polyview import hosts
from polyview.errors import InputError, check_range, nearest
from polyview.evaluation.base import Result
from polyview.rl.aggregates import success_interval
from polyview.runs.load import model_at

# Seeds of episodes to act in. Those of demonstrations begin at 2^22.
_SEEDS = {"validation": 0, "test": 2**20}


@dataclass(frozen=True)
class Success:
    """The share of episodes that a policy ends with success, for each world.

    Intervals are Wilson's, of 95 %. Episodes depend on their seed and the policy alone,
    not on how many are played side by side.

    Attributes:
      worlds: names of `agents.environments.worlds`, or functions that make one.
      views: what the policy is shown, as in training.
      episodes: of each world.
      split: "validation" to choose by, "test" once: other seeds of episodes.
      rows: episodes side by side.
      limit: steps of an episode; 0: the world's own.
      seed: of the first episode.
      pixels: of the images that worlds show, if the policy sees images.
      versions: of the packages that demonstrations were played in; others are refused.
      policy: the policy's path in the model, such as "policies.maze" of
        `agents.generalist:Generalist`; "" for the model itself.
    """

    worlds: Sequence[str | Callable[[], World]]
    views: Context
    episodes: int = 100
    split: str = "validation"
    rows: int = 32
    limit: int = 0
    seed: int = 0
    pixels: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    policy: str = ""

    def __post_init__(self) -> None:
        check_range(1, 100_000, episodes=self.episodes, rows=self.rows)
        check_range(0, limit=self.limit)
        check_range(0, 2**20 - self.episodes, seed=self.seed)
        if self.split not in _SEEDS:
            raise InputError(f"split={self.split!r}{nearest(self.split, _SEEDS)}")
        if isinstance(self.worlds, str) or not self.worlds:
            raise InputError("worlds is a list of one name or more")
        # An absent package is told when worlds are made: training may do without.
        check_versions({"versions": installed(self.versions)})

    def references(self) -> dict[str, Any]:
        """Return what acts without a policy."""
        return {"chance": Chance(made_of(self.worlds[0]))}

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Let a model act."""
        del mesh  # worlds run on the host; every device draws all
        check_versions({"versions": self.versions})
        each = -(-self.rows // len(self.worlds))
        each = min(each, self.episodes)
        first = _SEEDS[self.split] + self.seed
        lanes = []
        for one in self.worlds:
            seeds = iter(range(first, first + self.episodes))
            shown = self.pixels if "image" in self.views.observations else 0
            made = [made_of(one, shown) for _ in range(each)]
            lanes += [Lane(own, seeds, self.limit) for own in made]
        self._check(lanes, each)
        acting = model
        if self.policy and not isinstance(model, Chance):
            acting = model_at(model, self.policy)
        for number in play(acting, lanes, self.views):
            if lanes[number].ended:
                lanes[number].over()
        return self.result(lanes)

    def _check(self, lanes: Sequence[Lane], each: int) -> None:
        names = [lane.world.name for lane in lanes[::each]]
        if len(set(names)) < len(names):
            raise InputError(f"two worlds have one name: {', '.join(names)}")
        for lane in lanes:
            for name in self.views.observations:
                if name not in lane.world.shapes:
                    raise InputError(
                        f"{lane.world.name} shows {', '.join(lane.world.shapes)}, and "
                        f"the policy sees {name!r}; evaluate it in its own worlds"
                    )

    def result(self, lanes: Sequence["Lane"]) -> Result:
        """Return the rates of what was played."""
        numbers: dict[str, Any] = {
            "protocol": {
                "worlds": list(dict.fromkeys(lane.world.name for lane in lanes)),
                "episodes": self.episodes,
                "split": self.split,
                "limit": self.limit,
                "seed": self.seed,
                "versions": dict(lanes[0].world.versions),
                "policy": self.policy,
            },
            "worlds": {},
        }
        whole = 0
        for name in numbers["protocol"]["worlds"]:
            own = sorted(
                played
                for lane in lanes
                if lane.world.name == name
                for played in lane.played
            )
            won = sum(success for _, success, _ in own)
            whole += won
            numbers["worlds"][name] = {
                "success": won / self.episodes,
                "interval": list(success_interval(won, self.episodes)),
                "successes": [bool(success) for _, success, _ in own],
                "steps": [steps for _, _, steps in own],
            }
        count = self.episodes * len(self.worlds)
        numbers |= {
            "success": whole / count,
            "interval": list(success_interval(whole, count)),
            "episodes": count,
            "machine": hosts.machine(),
        }
        return Result(
            numbers,
            summary=self.summary(numbers),
            columns=self.columns(numbers),
            standard_errors=self.standard_errors(numbers),
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """The rate over all episodes, and the lowest and highest of a world."""
        low, high = numbers["interval"]
        line = (
            f"success {numbers['success']:.3f} ({low:.3f} to {high:.3f}) of "
            f"{numbers['episodes']} episodes"
        )
        rates = {name: own["success"] for name, own in numbers["worlds"].items()}
        if len(rates) > 1:
            worst, best = min(rates, key=rates.__getitem__), max(rates, key=rates.get)  # type: ignore[arg-type]
            line += f"; {worst} {rates[worst]:.2f}, {best} {rates[best]:.2f}"
        return line

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The rate over all episodes; of one domain of several, in %, by its name."""
        domain = numbers["protocol"].get("policy", "").rpartition(".")[2]
        if domain:
            return {f"{domain} %": 100 * numbers["success"]}
        return {"success": numbers["success"]}

    @staticmethod
    def standard_errors(numbers: Mapping) -> dict[str, float]:
        """The binomial error of the rate."""
        rate, (name,) = numbers["success"], Success.columns(numbers)
        error = (rate * (1 - rate) / numbers["episodes"]) ** 0.5
        return {name: (100 if name.endswith("%") else 1) * error}
