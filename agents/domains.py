"""Shared pieces of configs of one policy for several domains (GEA, Szot et al. 2025).

A domain is a data set of demonstrations (`agents.recording`), and is called by its
name: its worlds, its prompt, its views, its part of the model and its evaluation.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agents import parts, recording
from agents.llm.tokenizer import Tokenizer
from polyview.errors import InputError, fits_together, nearest

# {kind of world: who acts, by what actions, seen by what camera}; wording is ours.
PROMPTS = {
    "babyai": ("a player in a grid", "turn, go, pick up, drop, open", "ahead"),
    "metaworld": ("a robot's arm", "motion of hand and gripper", "from a corner"),
    "pointmaze": ("a ball in a maze", "a force", "from above"),
    "rearrange": ("a robot in a flat", "skills by name", "of one place"),
    "pong": ("a player of a game", "moves of a joystick", "the last three frames"),
}
SEEING = ("frozen", "trained", "random_trained", "random_frozen")
CODES = "codes"  # the adapter of all continuous actions
CRITIC = {"hidden": 512, "rate": 0.01}  # ours; only numbered actions have values


def named(data: str) -> list[str]:
    """Return the domains of a config's argument: names joined by +.

    Raises InputError if there are none, one is there twice, or is no name of a part.
    """
    names = data.split("+")
    for name in names:
        if not name.isidentifier() or name == CODES:
            raise InputError(
                f"data={data}: {name!r} is no name of a domain; record it under "
                "letters, digits and _ alone, with --name"
            )
        if names.count(name) > 1:
            raise InputError(f"data={data} has two domains with one name, {name}")
    return names


def prompts(kinds: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return {domain: texts before and after an instruction}; kinds: of its worlds.

    Raises InputError for prompts that differ by blanks alone.
    """
    found = {}
    for domain, kind in kinds.items():
        agent, actions, camera = PROMPTS.get(kind, (f"an agent in {kind}", kind, kind))
        before = (
            f"User:\nAgent: {agent}.\nActions: {actions}.\nCamera: {camera}.\n"
            "Instruction: "
        )
        found[domain] = before, "\n\nAgent:"
    plain: dict[str, str] = {}
    for domain, texts in found.items():
        words = "".join("".join(texts).split())
        other = plain.setdefault(words, domain)
        if found[other] != texts:
            raise InputError(
                f"the prompts of {other} and {domain} differ by blanks alone; write "
                "both alike, or tell them apart by words"
            )
    return found


def views(
    observations: Sequence[str], prompt: tuple[str, str], model: str, room: int
) -> dict[str, Any]:
    """Return the views of a domain's demonstrations.

    model: whose tokens are read; room: tokens of an instruction, beside the prompt.
    """
    before, after = prompt
    read = Tokenizer(parts.tokenizer(model)["sha256"])
    return {
        "target": "agents.data:Context",
        "observations": list(observations),
        "span": 1,
        "draws": 4,  # ours: steps of an episode in a batch
        "text": parts.tokenizer(model),
        "length": len(read.encode(before + after)) + room,
        "before": before,
        "after": after,
    }


def seen(
    names: Sequence[str], observations: str, vision: str, seeing: str, pixels: int
) -> tuple[dict[str, Any], dict[str, dict[str, str]], dict[str, Any]]:
    """Return shared bridges, {domain: {observation: bridge}}, and the `init` of them.

    Args:
      names: of the domains.
      observations: as of `agents.parts:bridges`.
      vision: the run whose encoder sees images.
      seeing: of `SEEING`: the encoder with the run's weights, fixed or trained, or the
        same one from random weights.
      pixels: images are resized to this.
    """
    if seeing not in SEEING:
        raise InputError(f"seeing={seeing!r}{nearest(seeing, SEEING)}")
    bridges: dict[str, Any] = {}
    by_domain: dict[str, dict[str, str]] = {}
    init: dict[str, Any] = {}
    for name in names:
        own, laid = parts.bridges(name, observations, vision)
        by_domain[name] = {}
        for observation, spec in own.items():
            # States of two domains have nothing in common; images and grids do.
            shared = observation if observation != "state" else f"state_{name}"
            if observation == "image":
                spec["size"] = pixels
                spec["tower"]["frozen"] = not seeing.endswith("trained")
                init |= {} if seeing.startswith("random") else laid
            elif bridges.get(shared, spec) != spec:
                shared = f"{observation}_{name}"
            bridges[shared] = spec
            by_domain[name][observation] = shared
    return bridges, by_domain, init


def adapters(
    names: Sequence[str], words: str, tokenizer: str, model: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Any]]:
    """Return adapters, {domain: options of its part that name one}, and the `init`.

    Args:
      names: of the domains.
      words: the adapter of numbered actions, "semlang", "lang" or "pred".
      tokenizer: the run of a tokenizer, which all continuous actions share.
      model: the prepared language model whose words are written.
    """
    found: dict[str, Any] = {}
    shared: dict[tuple, str] = {}
    options: dict[str, dict[str, Any]] = {}
    init: dict[str, Any] = {}
    for name in names:
        action = recording.describe(name)["action"]
        if "names" in action:
            own = parts.named(words, action["names"], model)
            meaning = tuple(action["names"])  # two of equal length may not be alike
            at = shared.setdefault(meaning, name)
            found[at] = own
            options[name] = {"adapter": at, "critic": dict(CRITIC)}
            continue
        if not tokenizer:
            raise InputError(
                f"{name} has continuous actions, and needs tokenizer=RUN, a run of "
                "configs/agents_tokenizer.py on all such domains"
            )
        own = parts.learnt_tokenizer(tokenizer)
        size, most = action["size"], len(own["low"])
        if size > most:
            raise InputError(
                f"{name} has actions of {size} numbers, and the tokenizer {tokenizer} "
                f"of {most}; train one with data={'+'.join(names)}"
            )
        found[CODES] = {"partial": "agents.adapters:Tokens", "tokenizer": own}
        options[name] = {"adapter": CODES} | ({"size": size} if size < most else {})
        init = {f"adapters.{CODES}.tokenizer": {"from": tokenizer, "path": ""}}
    return found, options, init


def ranges(names: Sequence[str]) -> tuple[list[float], list[float], int | None]:
    """Return the range of continuous actions of all domains, and how many differ.

    Where a shorter action ends, the zeros after it are part of the range. None: how
    many is not known. Raises InputError for numbered actions.
    """
    every = {name: recording.describe(name)["action"] for name in names}
    for name, action in every.items():
        if not {"low", "high"} <= set(action):
            raise InputError(
                f"the actions of {name} are numbered, and need no tokenizer; take "
                "demonstrations of a world with continuous actions"
            )
    most = max(len(action["low"]) for action in every.values())
    low, high = (
        [
            choose((*action[end], *[0.0] * most)[place] for action in every.values())
            for place in range(most)
        ]
        for end, choose in (("low", min), ("high", max))
    )
    counts = [action.get("distinct") for action in every.values()]
    return low, high, None if None in counts else sum(filter(None, counts))


def padded(source: dict[str, Any], names: Sequence[str], size: int) -> dict[str, Any]:
    """Return a source whose actions have `size` numbers, if there are several domains.

    One alone has as many as it has.
    """
    if len(names) == 1:
        return source
    at = "agents.tokenizers.training:PaddedActions"
    return {"target": at, "source": source, "size": size}


def actions(names: Sequence[str], size: int) -> dict[str, Any]:
    """Return source and views of a tokenizer of the actions of all domains."""
    seen_as = {"target": "agents.tokenizers.training:Actions", "m": 64}
    if len(names) == 1:
        return {"source": parts.held(names[0], "train"), "views": seen_as}
    sources = {name: padded(parts.held(name, "train"), names, size) for name in names}
    return {
        "source": {"target": "polyview.data.mixture:Mixture", "sources": sources},
        "views": {"target": "polyview.data.mixture:Alike", "views": seen_as},
    }


def mixture(
    names: Sequence[str],
    share: float,
    weights: Mapping[str, float],
    seen_by: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the source and the views of a mixture.

    Args:
      names: of the domains.
      share: of each domain's demonstrations, the first of them, at least one.
      weights: {domain: its weight}; seen_by: {domain: its views}.
    """
    if not 0 < share <= 1:
        raise InputError(f"share={share}; give more than 0, and 1 at most")
    splits = dict.fromkeys(names, "train")
    for name in names if share < 1 else ():
        count = recording.describe(name)["counts"]["episodes"]
        splits[name] = f"train[:{max(round(share * count), 1)}]"
    source = {
        "target": "polyview.data.mixture:Mixture",
        "sources": {name: parts.held(name, split) for name, split in splits.items()},
        "weights": dict(weights),
    }
    views = {"target": "polyview.data.mixture:OfDomains", "views": dict(seen_by)}
    return source, views


def fewest(shares: Mapping[str, float]) -> int:
    """Return the rows of the smallest batch that has one of each domain."""
    given = [share for share in shares.values() if share]
    return math.ceil(sum(given) / min(given))


def weights(text: str, names: Sequence[str]) -> dict[str, float]:
    """Return {domain: weight} of an argument such as "1+1+2"; "" gives all the same."""
    try:
        found = (
            [float(word) for word in text.split("+")] if text else [1.0] * len(names)
        )
    except ValueError:
        found = []
    if len(found) != len(names):
        raise InputError(f"weights={text}: give {len(names)} numbers joined by +")
    return dict(zip(names, found, strict=True))


def successes(
    seen_by: Mapping[str, Any], episodes: int, split: str
) -> dict[str, dict[str, Any]]:
    """Return an evaluation of each domain by success in its worlds."""
    found = {}
    for name, own in seen_by.items():
        described = recording.describe(name)
        found[name] = {
            "target": "agents.evaluation.success:Success",
            "worlds": described["tasks"],
            "views": {**own, "draws": 1},
            "episodes": episodes,
            "limit": 0,  # the world's own
            "split": split,
            "versions": described["versions"],
            "pixels": described["observations"].get("image", [0])[0],
            "policy": f"policies.{name}",
        }
    return found


def rows(
    name: str, seen_by: Mapping[str, Any], fast: bool, processes: int, most: int
) -> dict[str, Any]:
    """Return the spec of rows of a domain's world, to be played.

    Args:
      name: of the domain; it has one world.
      seen_by: {domain: its views}.
      fast: play BabyAI by envpool, which shows no images.
      processes: of other worlds.
      most: steps of each row, for envpool.

    Raises InputError for an unknown domain, and one of several worlds.
    """
    if name not in seen_by:
        raise InputError(f"play={name}{nearest(name, seen_by)}")
    described, own = recording.describe(name), seen_by[name]
    if len(described["tasks"]) > 1:
        raise InputError(
            f"play={name}: it has {len(described['tasks'])} worlds; a domain that is "
            "played has one"
        )
    keys = ("text", "length", "before", "after")
    spec = {"name": described["tasks"][0]} | {key: own[key] for key in keys}
    if fast:
        return {"partial": "agents.environments.envpool:EnvPool", "most": most, **spec}
    pixels = described["observations"].get("image", [0])[0]
    shown = pixels if "image" in own["observations"] else 0
    at = "agents.environments.rows:rows"
    return {"partial": at, "processes": processes, "pixels": shown, **spec}


def informed(
    model: Mapping[str, Any], names: Sequence[str], observations: str
) -> dict[str, Any]:
    """Return the model, whose values in some domains read more than its actions do.

    observations: of each domain, as of `agents.parts:bridges`.
    """
    bridges, of = dict(model["bridges"]), dict(model["domains"])
    for name in names:
        own, _ = parts.bridges(name, observations)
        at = {observation: f"values_{name}_{observation}" for observation in own}
        bridges |= {at[observation]: spec for observation, spec in own.items()}
        of[name] = {**of[name], "privileged": at}
    return {**model, "bridges": bridges, "domains": of}


def learnt(run: str, informed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the `init` that begins with all weights of a run.

    informed: domains whose values read more than they did there, and begin anew.
    """
    init: dict[str, Any] = {"from": run, "path": ""}
    if informed:
        values = [f"policies.{name}.critic.*" for name in informed]
        init |= {"fresh": values, "leave": values}
    return {"": init}


def begun_from(run: str) -> dict[str, Any]:
    """Return the config of a run of configs/gea_supervised.py, to play on from.

    Raises InputError for another run.
    """
    with fits_together(f"start={run}"):
        copied = ("model", "source", "views", "objective", "evaluations")
        config = parts.config_of(run, copied)
        model: Any = config.get("model") or {}
    known = model.get("partial") == "agents.generalist:Generalist"
    if not known or "views" not in (config.get("views") or {}):
        raise InputError(f"{run} is no run of configs/gea_supervised.py")
    return config
