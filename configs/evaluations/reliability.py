"""Which answers of a classifier to trust, and which images are foreign to it.

    python -m polyview.evaluate --run runs/classifier \\
        --evaluation configs/evaluations/reliability.py:ood=noise+inverted+digits
    python -m polyview.evaluate --run runs/a --evaluation \\
        configs/evaluations/reliability.py:train=train[:6000],ood=noise+FOLDER

For a trained classifier (`configs/classifier_fashion_mnist.py`), or a frozen encoder,
to which a linear probe is fitted.

Arguments: data, a prepared data set with labels (by default the run's own); ood, images
that are foreign to it, joined by +: noise, inverted (the test images), classes (those
of the test split that the run leaves out), a prepared data set or a folder of images;
train, the split that fits a probe (by default the run's own; a third of it calibrates);
calibration, a split with other rows for a classifier (by default, after train[:N], the
next N/2 rows); test, another split to test on; layer, whose activations are the pattern
(by default the encoder's last ReLU); draws, passes with dropout; runs, further runs
joined by +, which make an ensemble of classifiers of the same classes; k of nearest
neighbours; resamples; seed.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.config.spec import build
from polyview.config.trust import allow_list, renewed
from polyview.data.sources.labels import check_label
from polyview.errors import InputError
from polyview.evaluation.base import viewing_spec
from polyview.evaluation.classification import class_names
from polyview.runs.workdir import read_config

SOURCES = "polyview.data.sources"


def get_evaluations(argument: str, run: dict) -> dict:
    """Return `polyview.evaluation.reliability:Reliability`."""
    args = parse_arguments(
        argument,
        data="",
        ood="noise+inverted",
        train="",
        calibration="",
        test="",
        layer="",
        draws=10,
        runs="",
        k=50,
        resamples=200,
        seed=0,
    )
    seen = viewing_spec(run) or {}
    train, test = parts.evaluated(run, seen, args["data"])
    if "views" not in seen:
        raise InputError("the run's config has no evaluation that says how to see data")
    label = seen.get("label") or "label"
    logits = answering(run, label)
    if args["data"] and logits:
        raise InputError("data=NAME: a classifier answers for its own data alone")
    if args["train"] and logits:
        raise InputError(
            "train=SPLIT is for probes: other rows have trained this classifier; leave "
            "it out"
        )
    if args["test"]:
        test = at_split(test, args["test"])
    if args["train"]:
        train = at_split(train, args["train"])
    spec = {
        "target": "polyview.evaluation.reliability:Reliability",
        "train": train,
        "test": test,
        "views": {**seen["views"], "targets": [label]},
        "calibration": calibration(train, args["calibration"], logits),
        "logits": logits,
        "layer": args["layer"] or None,
        "draws": args["draws"] if logits else 0,
        "neighbours": args["k"],
        "resamples": args["resamples"],
        "label": label,
        "modality": seen.get("modality", "image"),
        "batch_size": seen.get("batch_size", 500),
        "seed": args["seed"],
    }
    if args["runs"]:
        paths = args["runs"].split("+")
        spec["members"] = {
            path: {"target": "polyview.runs.load:frozen_model", "run": path}
            for path in paths
        }
        spec["member_classes"] = {path: classes_of(path, label) for path in paths}
    names = list(filter(None, args["ood"].split("+")))
    often = Counter(Path(name).name for name in names).most_common(1)
    if often and often[0][1] > 1:
        raise InputError(f"ood: two are called {often[0][0]}; rename one, or leave it")
    channels = cache(partial(channels_of, test))
    spec["foreign"] = {Path(name).name: foreign(name, test, channels) for name in names}
    spec["foreign_views"] = {**seen["views"], "targets": []}
    return {"reliability": spec}


def answering(run: Mapping, label: str) -> str | None:
    """Return the features whose z are logits of a label; None without a classifier."""
    # The command has checked what the run's config may call.
    outputs = getattr(build(run["objective"]), "outputs", {})
    return outputs.get(label)


def calibration(train: Mapping, split: str, logits: str | None) -> dict | None:
    """Return the source that calibrates a classifier; None for a probe."""
    if split:
        return at_split(train, split)
    if logits is None:
        return None
    found = re.fullmatch(r"(\w+)\[:(\d+)\]", str(parts.innermost(train).get("split")))
    if not found:
        raise InputError(
            "the run trained on a whole split; name rows that it has not seen: "
            "calibration=SPLIT"
        )
    name, rows = found[1], int(found[2])
    return at_split(train, f"{name}[{rows}:{rows + rows // 2}]")


def classes_of(path: str, label: str) -> list[str]:
    """Return the names of the classes that a run learnt, in the order of its logits."""
    spec = renewed(read_config(Path(path)).to_dict())["source"]
    source = build(spec, allow_list(), where=f"{path}: source")
    check_label(source, label, "an ensemble answers")
    return class_names(source.targets[label])


def channels_of(test: Mapping) -> int:
    """Return the channels of the run's images, which may take as long as reading all.

    Some sources read every label before the first row.
    """
    # The command has checked what the run's config may call.
    image = build(test, where="test")[0]["image"]
    return 3 if isinstance(image, bytes) else (*image.shape, 1)[2]


def foreign(name: str, test: Mapping, channels: Callable[[], int]) -> dict:
    """Return the source of images of a name, with as many channels as the run's."""
    if name == "noise":
        return {"target": f"{SOURCES}.foreign:Noise", "like": test}
    if name == "inverted":
        return {"target": f"{SOURCES}.foreign:Inverted", "source": test}
    if name == "classes":
        return other_classes(test)
    path = Path(name)
    if path.is_dir() and "/" in name:
        source: Any = {"target": f"{SOURCES}.folder:Folder", "path": name}
    else:
        source = parts.prepared(name, "test")
    return {
        "target": f"{SOURCES}.foreign:WithChannels",
        "source": source,
        "channels": channels(),
    }


def other_classes(test: Mapping) -> dict:
    """Return the rows of the classes that a run leaves out."""
    target = f"{SOURCES}.classes:SomeClasses"
    if test.get("target") != target:
        raise InputError("ood=classes: the run leaves out no class of its data")
    inner = test["source"]
    label = test.get("label", "label")
    total = build(inner, where="test").targets[label]["classes"]
    rest = [number for number in range(total) if number not in test["keep"]]
    return {**test, "keep": rest}


def at_split(source: Mapping, split: str) -> dict:
    """Return the source with another split of its innermost one."""
    if "source" in source:
        return {**source, "source": at_split(source["source"], split)}
    if "split" not in source:
        raise InputError(f"the run's source has no splits; leave out {split}")
    return {**source, "split": split}
