"""Poly-view learning on your own folder of images, on one small machine.

    python -m polyview.prepare folder --input photos --name mine
    python -m polyview.main --config configs/polyview_folder.py:data=mine \\
        --workdir runs/mine

Arguments: data, the name given to `prepare`; size of the views in pixels; views;
encoder (resnet_tiny | resnet18 | resnet50 | vit_s); objective; batch (fixed | growing).
What is not given follows from the data: the size from that of the images; the encoder,
the batch and the epochs from their number; mean and deviation from the manifest. See
docs/encoders.md for other encoders.
Hardware: two laptop cores for a few thousand images, a GPU for more. Measured on 3,000
generated photographs: docs/results.md.
"""

from typing import Any

from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.data.sources.manifest import read_manifest
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError, nearest

ENCODERS: dict[str, dict[str, Any]] = {
    "resnet_tiny": {"partial": "polyview.nn.resnet:resnet_tiny", "in_channels": 3},
    "resnet18": {"partial": "polyview.nn.resnet:resnet18"},
    "resnet50": {"partial": "polyview.nn.resnet:resnet50", "remat": "none"},
    "vit_s": {"partial": "polyview.nn.vit:vit_s", "remat": "none"},
}


def get_config(argument: str = "") -> dict:
    """All numbers are ours unless a line says otherwise."""
    args = parse_arguments(
        argument,
        data="",
        size=0,
        views=4,
        encoder="",
        objective="geometric",
        batch="fixed",
    )
    manifest = _manifest(args["data"])
    rows = manifest["splits"]["train"]["count"]
    found = manifest["statistics"]
    small = rows < 50_000  # a run of minutes on two cores
    size = args["size"] or _size(min(found["height"][1], found["width"][1]), small)
    encoder = args["encoder"] or ("resnet_tiny" if small else "resnet18")
    if encoder not in ENCODERS:
        raise InputError(f"encoder={encoder!r}{nearest(encoder, ENCODERS)}")
    label, train, test = _evaluated(args["data"], manifest)
    frozen = parts.frozen(train, test, size=size, fraction=1.0)
    frozen |= {"label": label}
    targets = (label,) if label else ()
    frozen["views"]["targets"] = targets
    objective = parts.contrastive(args["objective"], temperature=0.2)
    if "labels" in objective:
        if label is None:
            raise InputError(f"{args['data']} has no classes for {args['objective']}")
        objective["labels"] = label
    # A batch of an eighth of the images at most; SimCLR needs no less than 256 for its
    # rate (Chen et al. 2020), small data have no more.
    two_views = max(8, min(256, 2 ** ((rows // 8).bit_length() - 1)))
    # 20,000 images seen, between 5 epochs of many and 200 of few: minutes. More epochs
    # give better features.
    epochs = max(5, min(200, 20_000 // rows)) if small else 100
    crops = parts.generated(
        args["views"], "RandomResizedCrop", size=size, scale=(0.2, 1.0), flip=0.5
    )
    # Prepared images have 8 bits; others that the run is shown later may have more.
    if scale := manifest["provenance"].get("made from", {}).get("range"):
        crops["augment"]["range"] = tuple(scale)
        frozen["views"]["augment"]["range"] = tuple(scale)
    return {
        "seed": 0,
        "steps": None,
        "epochs": epochs,
        "batch_size": parts.unique_samples(args["batch"], args["views"], two_views),
        "log_every": 20,
        "checkpoint_every": 500,
        "evaluate_every": 0,
        "keep": 3,
        "workers": 0 if small else 4,
        "mesh": {"data": -1, "fsdp": 1},
        "source": train,
        "views": crops | {"targets": targets},
        "model": parts.image_model(
            encoder=_shaped(encoder, size),
            projector={
                "partial": "polyview.nn.heads:Projector",
                "hidden": (512,),
                "out": 128,
            },
            # Half of SimCLR's strength, as for CIFAR-10, and its blur for larger images
            # alone (Chen et al. 2020, appendix B.9).
            photometry={
                "target": "polyview.nn.photometry:Photometry",
                "strength": 0.5,
                "blur_chance": 0.5 if size > 64 else 0.0,
            },
            mean=tuple(found["mean"]),
            # A channel that is the same everywhere has no deviation to divide by.
            std=tuple(max(deviation, 0.01) for deviation in found["std"]),
        ),
        "objective": objective,
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(3e-3),
            "weight_decay": 1e-4,
            "warm_up": 0.1,
        },
        "evaluations": {"frozen": frozen},
    }


def _manifest(name: str) -> dict:
    if not name:
        raise InputError(
            "give data=NAME, a data set of: python -m polyview.prepare folder --input "
            "DIR --name NAME"
        )
    directory = default_data_dir() / name
    if not (directory / "manifest.json").is_file():
        names = [m.parent.name for m in directory.parent.glob("*/manifest.json")]
        raise InputError(
            f"no data set {name!r} in {directory.parent}{nearest(name, names)}; run: "
            f"python -m polyview.prepare folder --input DIR --name {name}"
        )
    manifest = read_manifest(directory)
    if not manifest.get("statistics"):
        raise InputError(
            f"{directory} has no mean and deviation; prepare it from a folder (python "
            "-m polyview.prepare folder), or use the config of that data set"
        )
    return manifest


def _size(side: int, small: bool) -> int:
    """Return the size of the views for images whose shorter side is about `side`."""
    return 32 if side < 48 else 64 if small or side < 128 else 96


def _evaluated(name: str, manifest: dict) -> tuple[str | None, dict, dict]:
    """Return the label to evaluate, and the splits to fit on and to test on.

    The label is None, for health alone, without a class or a labelled train split.
    """
    classes = [n for n, task in manifest["targets"].items() if task["kind"] == "class"]
    labelled = [s for s in manifest["splits"] if s not in manifest["unlabelled"]]
    test = next((s for s in ("test", "val") if s in labelled), "")
    if "train" not in labelled or not classes:
        test = next(s for s in ("test", "val", "train") if s in manifest["splits"])
        return None, parts.source(name, "train"), parts.source(name, test)
    if not test:
        # Training must not see the rows that test it.
        held_out = (parts.source(name, f"train[{part}]") for part in (":90%", "90%:"))
        return classes[0], *held_out
    return classes[0], parts.source(name, "train"), parts.source(name, test)


def _shaped(encoder: str, size: int) -> dict:
    """Return an encoder's spec for a size of image."""
    spec = dict(ENCODERS[encoder])
    if encoder == "vit_s":
        return spec | {"image": size, "patch": 8 if size % 16 or size < 128 else 16}
    # A stem that does not shrink small images, as for CIFAR-10 (Chen et al. 2020).
    return spec if encoder == "resnet_tiny" or size > 64 else spec | {"stem": "small"}
