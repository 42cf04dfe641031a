"""Shared pieces of configs of language-model policies."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents import recording
from agents.feedback import pairs
from agents.llm import prepared
from agents.llm.tokenizer import Tokenizer
from agents.rearrange.environment import LIMIT
from agents.rearrange.words import SKILLS
from agents.tokenizers.text import digit_names
from polyview.config import parts
from polyview.config.trust import check_trusted
from polyview.errors import InputError, fits_together, nearest
from polyview.evaluation.base import viewing_spec
from polyview.files import read_json
from polyview.runs.workdir import read_config

# Szot et al. 2024b (LLaRP's code): rank 8, alpha 32; adapters and GEA take rank 128.
LORA = {"rank": 8, "alpha": 32.0, "dropout": 0.0}
# Of a body that learns; see `agents.llm.llama:Body`.
PRECISION = {"dtype": "float32", "remat": "dots"}


def body(
    name: str, layers: int | None = None, lora: Mapping[str, Any] | None = LORA
) -> dict[str, Any]:
    """Return the spec of a prepared model's body; layers: the first ones, None for all.

    Raises InputError for a model that is not prepared or has fewer blocks.
    """
    settings = dict(prepared.describe(name)["settings"])
    if layers is not None:
        if not 1 <= layers <= settings["layers"]:
            raise InputError(
                f"layers={layers}, and {name} has {settings['layers']}: give 1 to "
                f"{settings['layers']}"
            )
        settings["layers"] = layers
    return {
        "partial": "agents.llm.llama:Body",
        **settings,
        **PRECISION,
        "lora": None if lora is None else dict(lora),
    }


def body_weights(name: str, at: str = "body") -> dict[str, Any]:
    """Return the `init` that lays a prepared model's weights over a body at `at`."""
    return {
        at: {
            "from": f"sha256:{prepared.describe(name)['weights']}",
            "path": "",
            "first": [f"{at}.blocks.*"],
            "source": f"the language model {name}, by python -m agents.prepare llm",
        }
    }


def tokenizer(name: str) -> dict[str, Any]:
    """Return the spec of a prepared model's tokenizer."""
    return {
        "target": "agents.llm.tokenizer:Tokenizer",
        "sha256": prepared.describe(name)["tokenizer"],
    }


# A body that is trained with the policy, for comparison; its sizes are ours.
SCRATCH = {
    "partial": "agents.llm.llama:Body",
    "layers": 2,
    "width": 128,
    "heads": 4,
    "kv_heads": 4,
    "hidden": 384,
    "frozen": False,
    **PRECISION,
}
ADAPTERS = ("pred", "uniform", "vq", "rvq", "lang", "semlang")


def scratch(name: str) -> dict[str, Any]:
    """Return the spec of a small trained body with a prepared model's vocabulary.

    name: "" for none, and a body that reads no text.
    """
    known = prepared.describe(name)["settings"]["vocabulary"] if name else 1
    return {**SCRATCH, "vocabulary": known}


def imitating(
    kind: str, name: str, layers: int | None, rank: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the spec of a body that imitates, and its `init`.

    kind: "llm", the first layers of a prepared model with low-rank adapters, or
    "scratch". Raises InputError for another kind, and for "llm" without a model.
    """
    if kind not in ("llm", "scratch"):
        raise InputError(f"body={kind!r} is neither 'llm' nor 'scratch'")
    if kind == "scratch":
        return scratch(name), {}
    if not name:
        raise InputError("body=llm needs model=NAME; without a model: body=scratch")
    return body(name, layers, {**LORA, "rank": rank}), body_weights(name)


def bridges(
    data: str, observations: str = "", vision: str = "", hidden: int = 512
) -> tuple[dict[str, dict], dict]:
    """Return a bridge for each observation of demonstrations, and the `init` of them.

    observations: names joined by "+"; by default all but images, and images with
    vision, a run whose encoder of images is taken, fixed. hidden: of the layers of a
    bridge, as in Szot et al. 2024. Raises InputError for other observations than those
    of the data.
    """
    described = recording.describe(data)
    shapes = described["observations"]
    names = [*filter(None, observations.split("+"))]
    names = names or [n for n in shapes if n != "image" or vision or len(shapes) == 1]
    found: dict[str, dict] = {}
    init: dict[str, Any] = {}
    for name in names:
        if name not in shapes:
            raise InputError(f"observations={observations}{nearest(name, shapes)}")
        shape = shapes[name]
        if name == "state":
            own = described["statistics"]["state"]
            found[name] = {
                "partial": "agents.bridges:State",
                "mean": own["mean"],
                "std": own["std"],
                "hidden": hidden,
            }
        elif name == "grid":
            found[name] = {
                "partial": "agents.bridges:Grid",
                "shape": list(shape),
                "codes": 16,  # minigrid has 11 objects, 6 colours and 4 states
                "whole": False,
                "hidden": hidden,
            }
        else:
            found[name], init = _seen(vision, hidden), _seen_init(vision)
    return found, init


def config_of(run: str, copied: Sequence[str] = ("model",)) -> dict[str, Any]:
    """Return the config of a run, of which some keys go into the user's own.

    That may call anything, and the run may be a stranger's: InputError if what is
    copied calls what no `trusted.txt` allows.
    """
    config = read_config(Path(run)).to_dict()
    for key in copied:
        check_trusted(config.get(key), where=f"{run}: {key}")
    return config


def _seen(run: str, hidden: int) -> dict[str, Any]:
    """Return the bridge of images by the encoder of a run, in its size of images."""
    if not run:
        raise InputError("images need an encoder: name a run, vision=RUN")
    with fits_together(f"vision={run}"):
        config = config_of(run)
        tower = config["model"]["towers"]["image"]
        views = (viewing_spec(config) or config)["views"]
        size = views.get("views", views)["augment"]["size"]
    keys = ("partial", "encoder", "mean", "std")
    return {
        "partial": "agents.bridges:Image",
        "tower": {
            **{key: tower[key] for key in keys if key in tower},
            "projector": {"partial": "polyview.nn.heads:Identity"},
            "local": True,
            "frozen": True,
        },
        "size": size,
        "hidden": hidden,
    }


def _seen_init(run: str) -> dict[str, Any]:
    at, there = "bridges.image.tower.encoder", "towers.image.encoder"
    return {at: {"from": run, "path": there}}


def adapter(kind: str, data: str, name: str, run: str = "") -> tuple[dict, dict]:
    """Return the spec of an adapter, and the `init` of its weights.

    kind: of `ADAPTERS`; name: of the prepared model; run: for vq and rvq, of
    `configs/agents_tokenizer.py`. Raises InputError if it does not fit the actions of
    the data.
    """
    if kind not in ADAPTERS:
        raise InputError(f"adapter={kind!r}{nearest(kind, ADAPTERS)}")
    action = recording.describe(data)["action"]
    numbered = "names" in action
    if kind != "pred" and numbered != (kind in ("lang", "semlang")):
        fitting = ("pred", "lang", "semlang") if numbered else ADAPTERS[:4]
        raise InputError(
            f"adapter={kind} is not for the {'numbered' if numbered else 'continuous'} "
            f"actions of {data}; take {', '.join(fitting)}"
        )
    if bool(run) != (kind in ("vq", "rvq")):
        raise InputError(
            f"adapter={kind} needs tokenizer=RUN, a run of configs/agents_tokenizer.py"
            if not run
            else f"adapter={kind} has no tokenizer that is trained; leave tokenizer out"
        )
    at = "agents.adapters"
    if numbered:
        return named(kind, action["names"], name), {}
    if kind == "pred":
        span = {"low": action["low"], "high": action["high"]}
        return {"partial": f"{at}:Regression", **span}, {}
    if kind == "uniform":
        made = {
            "partial": "agents.tokenizers.uniform:Uniform",
            "low": action["low"],
            "high": action["high"],
            "codes": 256,  # as OpenVLA
        }
        return {"partial": f"{at}:Tokens", "tokenizer": made}, {}
    model = learnt_tokenizer(run)
    if (model["codebooks"] == 1) != (kind == "vq"):
        raise InputError(
            f"{run} has {model['codebooks']} codebooks; vq has 1, rvq has 2 or more"
        )
    if len(model["low"]) != action["size"]:
        raise InputError(
            f"{run} has actions of {len(model['low'])} numbers, {data} of "
            f"{action['size']}; train one on {data}"
        )
    init = {"adapter.tokenizer": {"from": run, "path": ""}}
    return {"partial": f"{at}:Tokens", "tokenizer": model}, init


def learnt_tokenizer(run: str) -> dict[str, Any]:
    """Return the spec of the tokenizer of a run of configs/agents_tokenizer.py.

    Raises InputError for another run.
    """
    with fits_together(f"tokenizer={run}"):
        model: Any = config_of(run).get("model") or {}
    if model.get("partial") != "agents.tokenizers.residual:ResidualVQ":
        raise InputError(
            f"{run} is no tokenizer; train one: configs/agents_tokenizer.py"
        )
    return model


def named(kind: str, names: Sequence[str], name: str) -> dict[str, Any]:
    """Return the spec of an adapter of actions with names: pred, lang or semlang.

    name: of the prepared model whose words are written.
    """
    at = "agents.adapters"
    if kind == "pred":
        return {"partial": f"{at}:Categorical", "actions": len(names)}
    if kind not in ("lang", "semlang"):
        raise InputError(f"adapter={kind!r} is not pred, lang or semlang")
    if not name:
        raise InputError(f"adapter={kind} writes words, and needs model=NAME")
    words = digit_names(len(names)) if kind == "lang" else names
    return {"partial": f"{at}:Words", **strings(words, name)}


BODIES = ("frozen", "trained", "random", "gru", "moment", "lora")


def actor(
    kind: str,
    names: Sequence[str],
    bridges: Mapping[str, Any],
    span: int,
    *,
    name: str,
    layers: int,
    adapter: str = "pred",
    critic: Mapping[str, Any] | None = None,
    episodes: int = 8,
    wide: int = 256,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the spec of a policy with values, and its `init`; kind: of `BODIES`.

    `frozen` is a prepared language model, `lora` the same with low-rank adapters,
    `trained` its shape from random weights, all trained, `random` from random weights
    that stay. `gru` has no body: the words of an instruction in no order, and a GRU
    (Szot et al. 2024 compare the first with such); `moment` is the same without memory.
    bridges: {observation: spec}; wide: of the layers without a body.
    """
    if kind not in BODIES:
        raise InputError(f"body={kind!r}{nearest(kind, BODIES)}")
    values = dict(critic or {})
    if kind in ("gru", "moment"):
        if adapter != "pred":
            raise InputError(f"adapter={adapter} needs a body; body={kind} takes pred")
        own = "Recurrent" if kind == "gru" else "Reactive"
        return {
            "partial": f"polyview.rl.actors:{own}",
            "encoders": {**bridges, "text": {"partial": "agents.bridges:Bag"}},
            "actions": len(names),
            "width": wide,
            "critic": values,
        }, {}
    lora = LORA if kind == "lora" else None
    made = body(name, layers, lora) | {"frozen": kind != "trained"}
    init = body_weights(name) if kind in ("frozen", "lora") else {}
    return {
        "partial": "agents.policy:Policy",
        "body": made,
        "bridges": dict(bridges),
        "adapter": named(adapter, names, name),
        "span": span,
        "tells": False,  # as LLaRP: later steps see observations alone
        "critic": values,
        "episodes": episodes,
    }, init


# Of the pictures of `agents.rearrange`; sizes are ours.
PICTURE = {
    "partial": "agents.bridges:Picture",
    "encoder": {
        "partial": "polyview.nn.small_conv:SmallConv",
        "size": 32,
        "in_channels": 3,
        "widths": (16, 32, 32),
        "features": 256,
    },
    "hidden": 512,  # Szot et al. 2024
}
ROOM = 24  # tokens of an instruction of `agents.rearrange`


def rearranging(
    kind: str, name: str, layers: int, adapter: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the spec of a policy of TextRearrange, its `init`, and its views.

    Arguments are those of `actor`. The policy sees the whole episode. Imitation leaves
    its critic as it is.
    """
    span = LIMIT + 1  # and the last observation
    model, init = actor(
        kind,
        SKILLS,
        {"image": PICTURE},
        span,
        name=name,
        layers=layers,
        adapter=adapter,
        critic={"hidden": 512, "rate": 0.01},  # ours
    )
    views = {
        "target": "agents.data:Context",
        "observations": ["image"],
        "span": span,
        "text": tokenizer(name),
        "length": ROOM,
    }
    return model, init, views


def splits(views: Mapping[str, Any], names: Sequence[str], episodes: int) -> dict:
    """Return the spec of success in the splits of TextRearrange."""
    return {
        "target": "agents.evaluation.success:Success",
        "worlds": [f"rearrange:{name}" for name in names],
        "views": dict(views),
        "episodes": episodes,
        "limit": 0,  # the world's own
        "rows": 64 * len(names),
    }


def strings(words: Sequence[str], name: str) -> dict[str, Any]:
    """Return the tokens of words, with a space before, and the token that ends one."""
    about = prepared.describe(name)
    read = Tokenizer(about["tokenizer"])
    if "end" not in about["special"]:
        raise InputError(f"{name} has no token that ends a text")
    return {
        "strings": [read.encode(f" {word}") for word in words],
        "end": about["special"]["end"],
    }


def held(data: str, split: str) -> dict[str, Any]:
    """Return the source of demonstrations, held in memory."""
    return {
        "target": "polyview.data.sources.held:Held",
        "source": parts.source(data, split),
    }


READS = ("grid", "caption", "state")


def preferred(
    data: str, labels: str, split: str, tie_quantile: float, orders: str
) -> dict[str, Any]:
    """Return the source of a split of pairs with their labels."""
    return {
        "target": "agents.feedback.distil:Preferred",
        "pairs": pairs.source(data, split),
        "name": data,
        "labels": labels,
        "tie_quantile": tie_quantile,
        "orders": orders,
    }


def rewarding(reads: str, data: str) -> dict[str, Any]:
    """Return the spec of a reward network of pairs; reads: of `READS`.

    Raises InputError for what the pairs do not show. Sizes are ours.
    """
    described = pairs.describe(data)
    if reads not in READS:
        raise InputError(f"reads={reads!r}{nearest(reads, READS)}")
    shapes = described["observations"]
    if reads != "caption" and reads not in shapes:
        raise InputError(f"reads={reads}, and {data} shows {', '.join(shapes)}")
    if reads == "grid":
        return {
            "partial": "agents.feedback.distil:Sought",
            "shape": list(shapes["grid"]),
            "codes": 16,  # minigrid has 11 objects, 6 colours and 4 states
            "looks": 2,  # with one, a seed in three learns far less
            "width": 32,
            "hidden": 32,
        }
    bag = {"partial": "agents.bridges:Bag", "rows": 1021}
    own: dict[str, Any] = {**bag, "rows": 4093}
    if reads == "state":
        found = described["statistics"]["state"]
        own = {
            "partial": "agents.bridges:State",
            "mean": found["mean"],
            "std": found["std"],
        }
    # Captions of the goal alone need no instruction; see `agents.feedback.distil`.
    alone = reads == "caption" and described["settings"].get("goal_only")
    return {
        "partial": "agents.feedback.distil:Reward",
        "encoders": {reads: own} if alone else {reads: own, "text": bag},
        "width": 64,
        "hidden": 128,
    }


def scale_of(run: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config of a run of configs/rewards_distil.py, and its reward's scale.

    The scale is what its newest evaluation `reward` says: mean, deviation, quantiles.
    Raises InputError for another run, and for one whose reward is the same everywhere.
    """
    with fits_together(f"reward={run}"):
        config = config_of(run)
    model = config.get("model") or {}
    if not str(model.get("partial")).startswith("agents.feedback.distil:"):
        raise InputError(f"{run} holds no reward; train one: configs/rewards_distil.py")
    found = [
        (int(path.stem.partition("-")[0]), path)
        for path in (Path(run) / "eval").glob("*-reward.json")
        if path.stem.partition("-")[0].isdecimal()
    ]
    if not found:
        raise InputError(
            f"{run} is not evaluated, and the scale of its reward not known; run: "
            f"python -m polyview.evaluate {run}"
        )
    path = max(found)[1]
    with fits_together(f"{path}"):
        scale = dict(read_json(path)["scale"])
    numbers = [scale.get("mean"), scale.get("deviation"), *scale.get("quantiles", [])]
    if len(numbers) < 4 or not all(
        type(number) in (int, float) and math.isfinite(number) for number in numbers
    ):
        raise InputError(f"{path} is damaged: its scale is {scale}")
    if scale["deviation"] <= 0:
        raise InputError(
            f"{run} rewards all that it was trained on alike (deviation 0): it has "
            "learnt nothing; train it longer, or on other labels"
        )
    return config, scale


FORMS = ("raw", "thresholded", "potential")


def shaping(
    form: str,
    scale: Mapping[str, Any],
    *,
    quantile: float,
    weight: float,
    extrinsic: float,
    discount: float,
    power: float,
    counted: str,
) -> dict[str, Any]:
    """Return the spec of a shaping by a reward of a scale; form: of `FORMS`.

    quantile: of the reward over the training pairs, above which it is high; for others
    see `agents.feedback.shaping`. Raises InputError for a quantile outside 0 .. 1.
    """
    if form not in FORMS:
        raise InputError(f"form={form!r}{nearest(form, FORMS)}")
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile={quantile}; give 0 to 1")
    values = scale["quantiles"]
    high = float(np.interp(quantile, np.linspace(0, 1, len(values)), values))
    mean, deviation = scale["mean"], scale["deviation"]
    made = {
        "target": f"agents.feedback.shaping:{form.capitalize()}",
        "mean": mean,
        "deviation": deviation,
        "threshold": (high - mean) / deviation,
        "weight": weight,
        "extrinsic": extrinsic,
    }
    if form == "thresholded":
        made |= {"counted": counted, "power": power}
    if form == "potential":
        made["discount"] = discount
    return made
