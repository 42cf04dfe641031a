"""One policy of several domains: a body, bridges and adapters that they share.

Each domain (Szot et al. 2025, GEA) is a `Policy` of its own, made of shared parts: all
have the body, and those that name the same bridge or adapter have that in common. So a
domain has its instruction, its observations, its actions and its values, and whatever
acts in one world acts here as `policies.NAME`.

As an actor (`polyview.rl.acting:Actor`) it plays the domains `playing` side by side, in
rows of `polyview.rl.joined:Joined`: row i belongs to domain i mod n,
of n domains, and its observations are called "domain/name".
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from agents.adapters import Padded
from agents.llm.llama import Body
from agents.policy import Policy
from polyview.data.mixture import under
from polyview.devices import AXES
from polyview.errors import InputError, nearest
from polyview.rl.acting import Acted
from polyview.rl.critic import Critic
from polyview.rl.ppo import Judged


class Generalist(nnx.Module):
    """A policy for each of several domains; see the module.

    Args:
      body: makes `agents.llm.llama:Body`.
      bridges: {name: makes a bridge of `agents.bridges`}.
      adapters: {name: makes an adapter of `agents.adapters`}.
      domains: {domain: options of `agents.policy:Policy`}, where "bridges", and
        "privileged" if there is any, is {observation: name of a bridge} and "adapter"
        the name of one. With "size" an action has so many numbers, and the adapter's
        have more, as `Padded` takes them.
      playing: the domains that it plays as an actor, in the order of their names.

    Raises InputError for names of bridges, adapters and domains that there are not.
    """

    def __init__(
        self,
        *,
        body: Callable[..., Body],
        bridges: Mapping[str, Callable[..., Any]],
        adapters: Mapping[str, Callable[..., Any]],
        domains: Mapping[str, Mapping[str, Any]],
        playing: Sequence[str] = (),
        rngs: nnx.Rngs,
    ):
        if not domains:
            raise InputError("a generalist needs a domain or more")
        self.body = body(rngs=rngs)
        width = self.body.width
        # By name, as they are when a config is read again from JSON.
        made = {name: bridges[name](width, rngs=rngs) for name in sorted(bridges)}
        self.bridges: Any = nnx.Dict(made)
        made = {name: adapters[name](width, rngs=rngs) for name in sorted(adapters)}
        self.adapters: Any = nnx.Dict(made)
        policies = {
            name: self._policy(name, domains[name], rngs) for name in sorted(domains)
        }
        self.policies: Any = nnx.Dict(policies)
        self.domains, self.playing = tuple(policies), tuple(sorted(playing))
        for name in self.playing:
            if name not in policies:
                raise InputError(f"playing={name}{nearest(name, policies)}")

    def _policy(self, name: str, of: Mapping[str, Any], rngs: nnx.Rngs) -> Policy:
        options = dict(of)
        adapter = self._shared(self.adapters, options.pop("adapter"), name)
        if (size := options.pop("size", None)) is not None:
            adapter = functools.partial(Padded, adapter=adapter, size=size)
        seen, privileged = (
            {
                observation: self._shared(self.bridges, bridge, name)
                for observation, bridge in (options.pop(key, None) or {}).items()
            }
            for key in ("bridges", "privileged")
        )
        return Policy(
            body=lambda rngs: self.body,
            bridges=seen,
            adapter=adapter,
            privileged=privileged,
            **options,
            rngs=rngs,
        )

    @staticmethod
    def _shared(parts: Any, name: str, domain: str) -> Callable[..., Any]:
        """Return what gives a policy a part that exists."""
        if name not in parts:
            known = [*parts]
            raise InputError(
                f"domain {domain}: there is no {name}{nearest(name, known)}"
            )
        return lambda width, rngs=None: parts[name]

    # As an actor.

    @property
    def actions(self) -> int:
        """The most actions of a domain that is played."""
        return max(policy.actions for policy in self._played)

    @property
    def memory(self) -> int:
        """The most earlier steps that a domain's policy sees."""
        return max(policy.memory for policy in self._played)

    @property
    def episodes(self) -> int:
        """The fewest that a row of play may have."""
        return min(policy.episodes for policy in self._played)

    @property
    def critic(self) -> "Critics | None":
        """The critics of all domains that are played; None if one has none."""
        critics = [
            policy.critic for policy in self._played if policy.critic is not None
        ]
        return Critics(critics) if len(critics) == len(self.playing) else None

    @property
    def _played(self) -> list[Policy]:
        if not self.playing:
            raise InputError("the generalist plays no domain: name some, model.playing")
        return [self.policies[name] for name in self.playing]

    def recall(self, past: Mapping[str, Any], views: Mapping[str, jax.Array]) -> Any:
        """Return the memory of each domain."""
        return {
            name: policy.recall(self._own(past, name), under(rows(views), name))
            for name, policy, rows in self._each()
        }

    def act(
        self,
        memory: Any,
        views: Mapping[str, jax.Array],
        first: jax.Array,
        key: jax.Array | None,
    ) -> tuple[Any, Acted]:
        """Act in the rows of each domain."""
        kept, acted = {}, []
        for number, (name, policy, rows) in enumerate(self._each()):
            own = None if key is None else jax.random.fold_in(key, number)
            seen = under(rows(views), name)
            kept[name], found = policy.act(memory[name], seen, rows(first), own)
            acted.append(found)
        return kept, jax.tree.map(_interleaved, *acted)

    def prepare(self, play: dict[str, Any]) -> dict[str, Any]:
        """Return the play: instructions are read with it."""
        return play

    def judge(self, play: Mapping[str, Any]) -> Judged:
        """Return what the policies say of their rows."""
        parts = [
            policy.judge(self._own(play, name)) for name, policy, _ in self._each()
        ]
        return jax.tree.map(_interleaved, *parts)

    def _each(self) -> Iterator[tuple[str, Policy, Callable[[Any], Any]]]:
        """Yield the domains that are played, and what takes their rows."""
        for number, (name, policy) in enumerate(
            zip(self.playing, self._played, strict=True)
        ):
            yield name, policy, functools.partial(own_rows, number, len(self.playing))

    def _own(self, play: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return the rows of a domain in play, with its own views."""
        number = self.playing.index(name)
        own = own_rows(number, len(self.playing), dict(play))
        return own | {"views": under(own["views"], name)}


class Critics:
    """The critics of domains, whose rows take turns; as `polyview.rl.critic:Critic`.

    Arrays have rows first.
    """

    def __init__(self, critics: Sequence[Critic]):
        self._critics = list(critics)

    def restored(self, normalised: jax.Array) -> jax.Array:
        """Return values in the units of each domain's returns."""
        return self._through("restored", normalised)

    def normalised(self, returns: jax.Array) -> jax.Array:
        """Return what each domain's critic should say of returns."""
        return self._through("normalised", returns)

    def adapt(self, returns: jax.Array, mask: jax.Array) -> None:
        """Follow the returns of each domain."""
        for number, critic in enumerate(self._critics):
            critic.adapt(*own_rows(number, len(self._critics), (returns, mask)))

    def _through(self, name: str, values: jax.Array) -> jax.Array:
        count = len(self._critics)
        parts = [
            getattr(critic, name)(own_rows(number, count, values))
            for number, critic in enumerate(self._critics)
        ]
        return _interleaved(*parts)


def first_rows(tree: Any, order: jax.Array, count: int) -> Any:
    """Return the first `count` rows in an order int[n], and as few more as devices ask.

    That is, as many as can be split evenly over the ambient mesh; the compiler would
    give all rows to each device. Where n has no such number, it does.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = 1 if mesh.empty else mesh.size
    even = -(-count // size) * size
    splits = size > 1 and even <= len(order)
    at = order[: even if splits else count]

    def chosen(x: jax.Array) -> jax.Array:
        if not splits:
            return x[at]
        return jax.lax.with_sharding_constraint(x[at], PartitionSpec(AXES))

    return jax.tree.map(chosen, tree)


def own_rows(number: int, count: int, tree: Any) -> Any:
    """Return the rows of a domain: `number`, and each `count` after it."""
    return jax.tree.map(lambda x: x[number::count], tree)


def _interleaved(*parts: jax.Array) -> jax.Array:
    """Return rows that take turns, of the rows [n, ...] of each domain."""
    return jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:])
