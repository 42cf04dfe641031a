"""Unseen classes by their attributes; how compositional and how local features are.

    python -m polyview.evaluate --run runs/a --references \\
        --evaluation configs/evaluations/zero_shot_attributes.py
    python -m polyview.evaluate --run runs/a --references \\
        --evaluation configs/evaluations/zero_shot_attributes.py:dimensions=64

For runs on data with attributes of classes, of which the splits train, validation and
test have different ones: han and parts. Three evaluations: `zero_shot_attributes`;
`compositionality`, the TRE ratio; and `evidence`, if the data have boxes of parts.

Arguments: data, a prepared data set (by default the run's own); fonts and new_fonts,
fields of a record joined by +, each an image as in training or a new one (by default
those of han; other data have one image a record); seen, a split with other images of
the seen classes, for the generalised task (with new fonts, it is train in these);
dimensions, of principal components for the TRE ratio, which compares features of equal
dimensions only (0: all); path, of the encoder whose map the evidence reads; seed.
"""

from polyview.config import parts, zero_shot
from polyview.config.overrides import parse_arguments
from polyview.config.spec import build
from polyview.errors import InputError
from polyview.evaluation.base import viewing_spec

PARTS = "polyview.data.parts:Parts"


def get_evaluations(argument: str, run: dict) -> dict:
    """Return the three evaluations, or two of data without boxes."""
    args = parse_arguments(
        argument,
        data="",
        fonts="",
        new_fonts="",
        seen="",
        dimensions=0,
        path="towers.image.encoder",
        seed=0,
    )
    train, validation, test = (
        _split(run, args["data"], split) for split in ("train", "validation", "test")
    )
    fonts, new = _fonts(args, train.get("name"))
    unseen = {"new images": _rows(test, fonts)}
    seen = {}
    # Generated parts have such a split, prepared data say theirs.
    held = args["seen"] or {PARTS: "seen_test"}.get(train.get("target"), "")
    if held:
        seen["new images"] = _rows(_split(run, args["data"], held), fonts)
    if new:
        unseen = {"seen fonts": _rows(test, fonts), "new fonts": _rows(test, new)}
        seen = {"new fonts": _rows(train, new)}
    train, validation = _rows(train, fonts), _rows(validation, fonts)
    first = next(iter(unseen.values()))
    # The command has checked what the run's config may call.
    has_boxes = "boxes" in build(first, where="test").targets
    return zero_shot.evaluations(
        train,
        validation,
        unseen,
        seen,
        _views(run),
        upright=_upright(run) if has_boxes else None,
        dimensions=args["dimensions"] or None,
        path=args["path"],
        seed=args["seed"],
    )


def _split(run: dict, data: str, split: str) -> dict:
    """Return the source of a split: of a data set, or of the one inside the run's."""
    if data:
        return parts.prepared(data, split)
    source = parts.innermost(run["source"])
    if "split" not in source:
        raise InputError(
            "the run's source has no splits of seen and unseen classes; give data=NAME"
        )
    return {**source, "split": split}


def _fonts(args: dict, name: str | None) -> tuple[list[str], list[str]]:
    """Return the fonts that training has seen, and new ones."""
    fonts, new = (
        list(filter(None, args[k].split("+"))) for k in ("fonts", "new_fonts")
    )
    if name == "han" and not fonts:
        from polyview.data.prepare.han import NEW_FONTS, TRAIN_FONTS

        return [*TRAIN_FONTS], new or [*NEW_FONTS]
    if new and not fonts:
        raise InputError("new_fonts=... needs fonts=..., those of training")
    return fonts, new


def _rows(source: dict, fields: list[str]) -> dict:
    """Return a source with a row for each field, or as it is without fields."""
    if not fields:
        return source
    return {
        "target": "polyview.data.sources.unstacked:Unstacked",
        "source": source,
        "fields": fields,
    }


def _augment(run: dict) -> dict:
    """Return how the run's evaluations show an image, or else its training."""
    for spec in (viewing_spec(run), run):
        augment = ((spec or {}).get("views") or {}).get("augment")
        if augment:
            return augment
    raise InputError("the run's views have no augment, which says how to show an image")


def _views(run: dict) -> dict:
    return {
        "target": "polyview.data.views:Generated",
        "m": 1,
        "augment": _augment(run),
        "targets": ("label", "attributes"),
    }


def _upright(run: dict) -> dict:
    """Return how to show an image on which boxes hold."""
    augment = _augment(run)
    if augment["target"] != "polyview.data.glyphs:Glyph":
        return augment
    size = {"size": augment["size"]} if "size" in augment else {}
    return {"target": "polyview.data.glyphs:Upright", **size}
