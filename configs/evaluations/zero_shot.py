"""Classification without training: by the names of classes, or by class means.

    python -m polyview.evaluate --run runs/emoji \\
        --evaluation configs/evaluations/zero_shot.py:label=subgroup
    python -m polyview.evaluate --run runs/emoji \\
        --evaluation configs/evaluations/zero_shot.py:label=name
    python -m polyview.evaluate --run RUN --references \\
        --evaluation configs/evaluations/zero_shot.py:by=examples,per_class=1+5+10

Arguments: by (text | examples); data, a prepared data set with labels (by default the
run's own); label, a target, or for by=text also a field of texts, each of which is then
a class (by default the run's label); features (z | h; by default z for text, h for
examples).

by=text needs a run with a text tower, trained on texts of `polyview.prepare`: texts is
its modality; template has {} for a name, several are joined by |, and none can have a
comma. by=examples reads any run of images: per_class training rows of each class, draws
times.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.config.spec import build
from polyview.errors import InputError, nearest
from polyview.evaluation.base import viewing_spec, whole_numbers

FILE = "polyview.evaluation.zero_shot"


def get_evaluations(argument: str, run: dict) -> dict:
    """Return `polyview.evaluation.zero_shot:ZeroShot` or `ClassMeans`."""
    args = parse_arguments(
        argument,
        by="text",
        data="",
        label="",
        features="",
        texts="text",
        template="{}",
        per_class="1+5+10",
        draws=5,
    )
    if args["by"] not in ("text", "examples"):
        raise InputError(
            f"by={args['by']!r}{nearest(args['by'], ('text', 'examples'))}"
        )
    seen = viewing_spec(run) or {}
    train, test = parts.evaluated(run, seen, args["data"])
    if "views" not in seen:
        raise InputError("the run's config has no evaluation that says how to see data")
    # The command has checked what the run's config may call.
    targets = build(test, where="test").targets
    label = args["label"] or seen.get("label") or next(iter(targets), "label")
    views = {**seen["views"], "targets": [label] if label in targets else []}
    spec = {
        "test": test,
        "views": views,
        "label": label,
        "modality": seen.get("modality", "image"),
        "batch_size": seen.get("batch_size", 500),
    }
    if args["by"] == "examples":
        spec |= {
            "target": f"{FILE}:ClassMeans",
            "train": train,
            "per_class": whole_numbers(args["per_class"], "per_class"),
            "draws": args["draws"],
            "features": args["features"] or "h",
        }
        return {"class_means": spec}
    shapes = views.get("shapes") or {}
    if args["texts"] not in shapes:
        raise InputError(
            f"texts={args['texts']}: the run has no texts of this name, only "
            f"{', '.join(shapes) or 'images'}; classify by examples: by=examples"
        )
    spec |= {
        "target": f"{FILE}:ZeroShot",
        "tokens": {
            "target": f"{FILE}:PreparedWords",
            "name": run["source"].get("name", ""),
            "length": shapes[args["texts"]][0],
        },
        "text": args["texts"],
        "templates": args["template"].split("|"),
        "features": args["features"] or "z",
    }
    return {"zero_shot": spec}
