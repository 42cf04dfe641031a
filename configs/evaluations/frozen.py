"""Frozen features of any run of images: kNN and a linear probe, on data of your choice.

    python -m polyview.evaluate --run RUN --references \\
        --evaluation configs/evaluations/frozen.py:data=fashion_mnist

Arguments: data, a prepared data set with labels (by default the run's own); size of the
views in pixels and fraction of an image that a central view shows (by default those of
the run's evaluation, as is the modality, else 28 and 1); k of kNN, or several, as
k=1+10+20+200; per_class, numbers of training rows a class for few-shot kNN, as
per_class=1+5+10, drawn draws times.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.evaluation.base import viewing_spec, whole_numbers


def get_evaluations(argument: str, run: dict) -> dict:
    """Return `polyview.config.parts.frozen` on the run's data, or on other data."""
    args = parse_arguments(
        argument, data="", size=0, fraction=0.0, k="20", per_class="", draws=5
    )
    seen = viewing_spec(run) or {}
    train, test = parts.evaluated(run, seen, args["data"])
    views = seen.get("views") or {}
    augment = views.get("augment") or {}
    size = args["size"] or augment.get("size", 28)
    ks = whole_numbers(args["k"], "k")
    made = parts.frozen(
        train,
        test,
        size=size,
        fraction=args["fraction"] or augment.get("fraction", 1.0),
        k=ks[0] if len(ks) == 1 else ks,
        per_class=whole_numbers(args["per_class"], "per_class"),
        draws=args["draws"],
    )
    made["modality"] = seen.get("modality", made["modality"])
    if "field" in views:
        made["views"]["field"] = views["field"]
    if "label" in seen and not args["data"]:  # the run's own, also None
        label = seen["label"]
        made["label"] = label
        made["views"]["targets"] = () if label is None else (label,)
    if augment.get("range"):
        made["views"]["augment"]["range"] = augment["range"]
    return {"frozen": made}
