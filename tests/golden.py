"""The configs that tests resolve, and the text of each: `tests/golden/*.json`.

    make golden     # runs `python -m tests.golden`: rewrites the files

A changed default is one changed line there, so a review shows what a published command
now does. `tests/test_golden.py` compares the files with the configs.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from polyview import errors
from polyview.config.file import load_config
from polyview.config.text import to_json
from polyview.data.prepare import records
from sgi import recording

ROOT = Path(__file__).parent.parent
FILES = Path(__file__).with_name("golden")
LOSSES = (
    "geometric",
    "arithmetic",
    "sufficient_statistics",
    "multi_crop",
    "supcon",
    "mv_infonce",
    "mv_dhel",
)
# Arguments of the configs that train from scratch by `polyview.main`.
# `tests/test_configs.py` traces a step of each.
VARIANTS = {
    "polyview_digits": [f"objective={loss},views=3" for loss in LOSSES]
    + ["objective=nt_xent,views=2", "batch=growing,views=4", "dtype=bfloat16"]
    + ["objective=supcon_labels,views=3", "objective=moco,views=2"],
    "polyview_fashion_mnist": ["", "objective=nt_xent,views=2"],
    "polyview_cifar10": ["", "views=2,batch=growing,objective=nt_xent"],
    "polyview_imagenet": [
        "remat=blocks,accumulate=1",
        "encoder=vit_s,norm=none,microbatch=8,remat=dots",
        "encoder=vit_b,batch=growing,views=2",
    ],
    "polyview_gaussian": [
        f"objective={loss},views=3,steps=2,batch_size=8"
        for loss in ("geometric", "arithmetic", "sufficient_statistics", "multi_crop")
    ],
    "sgi_pretrain": ["size=tiny", "size=tiny,objective=cloning", "dtype=bfloat16"],
    "sgi_demo": [""],
    "crossmodal_openi": [
        "encoder=conv,method=cmim,alone=0.5",
        "encoder=transformer,method=intra,estimator=jensen_shannon",
        "method=polyview,views=indication+mesh",
        "method=supervised,views=indication,drop=0.0",
        "method=clip,views=findings+image",
    ],
    "crossmodal_emoji": [f"method={m}" for m in ("supervised", "clip", "polyview")]
    + ["method=siglip", "method=clip,temperature=learnt"],
    "crossmodal_mri": ["method=cmim", "model=early,method=supervised"],
    "polyview_han": ["views=2,batch=growing", "views=12,split=validation"],
    "zero_shot_han": [
        *(f"method={m}" for m in ("ae", "vae", "aae", "dim", "amdim", "cmdim")),
        *(f"method={m}" for m in ("supcon", "supervised", "attributes")),
        "method=local,local=labels",
        "method=dim,local=attributes,weight=0.1",
    ],
    "zero_shot_parts": ["method=amdim", "method=supervised,local=labels"],
    "classifier_fashion_mnist": ["", "classes=0-7,label_noise=.2"],
    "efficientnet": [""],
}
# sgi_finetune asks the emulator for the game's actions. probe and finetune read the
# config of a run; `stand_ins` has one, called digits, and others for rewards_ppo and
# gea_*.
GOLDEN = VARIANTS | {
    "sgi_finetune": ["size=S", "start=scratch"],
    "probe": ["run=digits"],
    "finetune": ["run=digits"],
    "dvf_pointmaze": ["method=flow,offset=False", "method=infonce", "method=td"]
    + ["actions=2", "policy=rollout", "most=60"],
    "dvf_policy": ["temperature=0.0,goal=0.5+0"],
    "dvf_atari": ["data=breakout,method=infonce"],
    "polyview_folder": ["data=digits", "data=digits,encoder=vit_s,size=96"],
    "agents_tokenizer": [""],
    "agents_policy": ["adapter=semlang", "data=metaworld,adapter=uniform,body=scratch"]
    + ["adapter=lang,span=4,demonstrations=100,layers=1"],
    "agents_babyai": ["body=frozen,fast=False,processes=2"],
    "agents_rearrange": ["body=lora,adapter=semlang", "body=gru,start=clone"],
    "agents_rearrange_clone": ["body=trained"],
    "ppo_cartpole": ["host=True"],
    "rewards_distil": ["", "reads=caption,ties=0.1"],
    "rewards_tuning": ["task=policy,layers=4"],
    "rewards_ppo": ["reward=distilled", "reward=distilled,form=thresholded,fast=False"],
    "gea_supervised": [
        "data=babyai_gotolocal+metaworld_two,tokenizer=codes,observations=,weights=2+1",
        "data=babyai_gotolocal,body=scratch,words=pred,observations=,share=0.05",
    ],
    "gea_frames": [""],
    "gea_online": [
        "start=generalist,play=babyai_gotolocal,scales=100",
        "start=generalist,play=babyai_gotolocal,scratch=True,clone=0.0,popart=False",
    ],
}
GAMES = {"pong": 6, "boxing": 18, "seaquest": 18}  # with the number of actions
NEEDS_AN_ARGUMENT = ("probe", "finetune", "polyview_folder", "rewards_ppo") + (
    "gea_supervised",
    "gea_online",
)
RECORDED = {  # what `dvf.recording.describe` says of episodes
    "maze": {"rows": ["####", "#..#", "####"], "cell": 1.0, "centre": [0.0, 0.0]},
    "settings": {"places": 2},
    "rest": [0.0, 0.0],
    "world": "point",
    "players": [{}] * 8,
    "policies": 8,
    "counts": {"episodes": 640, "states": 128000},
    "action": ["x", "y"],
    "variables": ["ball_x", "ball_y"],
    "weighed": {"goal": [0.5, 0.0], "radius": 0.25, "discount": 0.9},
    "statistics": {
        "states": {"mean": [0.0, 0.5], "std": [1.0, 2.0]},
        "advantages": {"std": 1.5},
    },
}
DEMONSTRATED = {  # what `agents.recording.describe` says, by the kind of world
    "babyai": {
        "world": "babyai",
        "tasks": ["babyai:GoToLocal"],
        "versions": {"minigrid": "3.2.0"},
        "counts": {"episodes": 1000},
        "observations": {"grid": [7, 7, 3]},
        "action": {"names": ["turn left", "turn right", "go forward"]},
    },
    "metaworld": {
        "world": "metaworld",
        "tasks": ["metaworld:reach-v3", "metaworld:push-v3"],
        "versions": {"metaworld": "3.1.1"},
        "counts": {"episodes": 500},
        "observations": {"state": [2]},
        "action": {"size": 1, "box": [-1, 1], "low": [-0.5], "high": [0.5]},
        "statistics": {"state": {"mean": [0.0, 0.5], "std": [1.0, 2.0]}},
    },
}
DEMONSTRATED["maze"] = DEMONSTRATED["metaworld"] | {
    "world": "pointmaze",
    "tasks": ["dvf.navigation:KnownGoals"],
    "action": {"size": 2, "box": [-1, 1], "low": [-0.5] * 2, "high": [0.5] * 2},
}
PAIRED = {  # what `agents.feedback.pairs.describe` says
    **DEMONSTRATED["babyai"],
    "settings": {"goal_only": True},
    "statistics": {},
    "digest": "2" * 64,
}
SCALE = {"mean": 0.5, "deviation": 2.0, "quantiles": [-4.0, 0.0, 1.0, 3.0, 5.0]}
MODEL = {  # what `agents.llm.prepared.describe` says
    "weights": "0" * 64,
    "tokenizer": "1" * 64,
    "special": {"end": 2},
    "settings": {"layers": 30, "width": 8, "vocabulary": 256, "head": 4},
}
CASES = [
    (name, argument)
    for name, arguments in GOLDEN.items()
    for argument in dict.fromkeys(
        [*([] if name in NEEDS_AN_ARGUMENT else [""]), *arguments]
    )
]


class Letters:
    """Stands in for a tokenizer: a token for each letter."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


AGENTS = {  # what stands in for demonstrations and language models
    "agents.recording.describe": lambda name: DEMONSTRATED[name.split("_")[0]],
    "agents.feedback.pairs.describe": lambda name: PAIRED,
    "agents.llm.prepared.describe": lambda name: MODEL,
    "agents.parts.Tokenizer": lambda digest: Letters(),
    "agents.domains.Tokenizer": lambda digest: Letters(),
}


def path_of(name: str, argument: str) -> Path:
    """Return the golden file of a config with an argument."""
    return FILES / f"{'-'.join(filter(None, (name, argument)))}.json"


def resolve(name: str, argument: str) -> str:
    """Return the text of a config with an argument; run it within `stand_ins`."""
    return to_json(load_config(f"{ROOT}/configs/{name}.py:{argument}")) + "\n"


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Work in a temporary folder with small data, and a run, that some configs read."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = {"POLYVIEW_DATA": str(folder / "data")}
        stack.enter_context(mock.patch.dict(os.environ, data))
        stack.enter_context(contextlib.chdir(folder))
        # As many rows as the batch of the probe, which is at most the whole data set.
        row = {"image": np.zeros((1, 1, 1), np.uint8), "label": 0}
        records.write(
            folder / "data" / "digits",
            {"train": [row] * 4096},
            version="1",
            targets={"label": {"kind": "class", "classes": 10}},
            source="",
            licence="",
            statistics={
                "height": [30, 40, 50],
                "width": [30, 40, 50],
                "mean": [0.4, 0.5, 0.6],
                "std": [0.2, 0.3, 0.0],
            },
        )
        frame = np.zeros((84, 84), np.uint8)
        for game, actions in GAMES.items():
            recording.write(
                folder / "data" / f"{game}_random",
                [recording.Step(frame, 0, 0.0, terminal=True, first=True)],
                1,
                source="",
                licence="",
                provenance={"game": game, "actions": ["NOOP"] * actions},
            )
        recorded = {"dvf.recording.describe": lambda name: RECORDED}
        for name, stand_in in (recorded | AGENTS).items():
            stack.enter_context(mock.patch(name, stand_in))
        (folder / "digits").mkdir()
        (folder / "digits" / "config.json").write_text(resolve("polyview_digits", ""))
        (folder / "distilled" / "eval").mkdir(parents=True)
        own = resolve("rewards_distil", "reads=caption")
        (folder / "distilled" / "config.json").write_text(own)
        found = to_json({"scale": SCALE})
        (folder / "distilled" / "eval" / "9-reward.json").write_text(found)
        for name, config in {
            "codes": ("agents_tokenizer", ""),
            "generalist": ("gea_supervised", GOLDEN["gea_supervised"][0]),
        }.items():
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(resolve(*config))
        yield


def main() -> None:
    """Write every file, delete those of no config, and name what changed."""
    with stand_ins():
        texts = {path_of(*case): resolve(*case) for case in CASES}
    FILES.mkdir(exist_ok=True)
    for path in sorted({*texts, *FILES.iterdir()}):
        old = path.read_text() if path.exists() else None
        if path not in texts:
            path.unlink()
        elif texts[path] != old:
            path.write_text(texts[path])
        if texts.get(path) != old:
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    errors.run(main)
