"""MRI with missing sequences: segment from any subset of T1, T1ce, T2 and FLAIR.

    python -m polyview.prepare mri_phantom
    python -m polyview.main --config configs/crossmodal_mri.py --workdir runs/mri
    python -m polyview.evaluate --run runs/mri

Arguments: model (hemis | early: one U-Net, missing sequences filled with zeros), method
(supervised | intra | clip | cmim | polyview; hemis only), weight of its terms, drop
(chance that each sequence is left out), data (mri_phantom | brats), steps, batch, split
(test | validation). The phantom is a single anatomy: it checks that the code works and
supports no medical claim.
Hardware: a laptop core for the phantom. Measured there (`python -m
benchmarks.missing mri --seeds 2`, mean Dice of 15 subsets): .46 with method=cmim and
supervised, .44 with model=early; the seeds differ by more. BraTS: not yet measured.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError, nearest

SEQUENCES = ("t1", "t1ce", "t2", "flair")
SIZES = {"mri_phantom": 96, "brats": 120}  # pixels of 2 mm
MODELS = {"hemis": "Hemis", "early": "EarlyFusion"}


def get_config(argument: str = "") -> dict:
    """All numbers are ours: those of the paper are not public."""
    args = parse_arguments(
        argument,
        model="hemis",
        method="cmim",
        weight=0.1,
        drop=0.5,
        data="mri_phantom",
        split="test",
        steps=300,
        batch=16,
    )
    for key, known in (("model", MODELS), ("data", SIZES)):
        if args[key] not in known:
            raise InputError(f"{key}={args[key]!r}{nearest(args[key], known)}")
    if args["model"] == "early" and args["method"] != "supervised":
        raise InputError(
            "model=early has no features of single sequences; add method=supervised"
        )
    # Slices of one patient are not negatives of each other. In the phantom each slice
    # is a patient.
    study = "patient" if args["data"] == "brats" else None
    size = SIZES[args["data"]]
    views = parts.observed(
        fields={s: (s,) for s in SEQUENCES},
        shapes={s: (size, size, 1) for s in SEQUENCES},
        dtypes={s: "float16" for s in SEQUENCES},
        targets=("mask", study) if study else ("mask",),
    )
    model = {
        "partial": f"polyview.nn.unet:{MODELS[args['model']]}",
        "sequences": SEQUENCES,
        "classes": 4,
        "widths": (8, 16, 32, 64),
        "task": "mask",
    }
    if args["model"] == "hemis":
        model["units"] = 64
    return {
        "seed": 0,
        "steps": args["steps"],
        "epochs": None,
        "batch_size": args["batch"],
        "log_every": 50,
        "checkpoint_every": 200,
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": parts.source(args["data"], "train"),
        "views": views,
        "model": model,
        "objective": parts.cross_modal(
            args["method"],
            {"mask": "dice_and_cross_entropy"},
            weight=args["weight"],
            estimator="info_nce",
            drop=args["drop"],
            # Out of 144 at the bottleneck for the phantom.
            positions=16,
            study=study,
        ),
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(2e-3),
            "weight_decay": 1e-4,
            "warm_up": 0.1,
        },
        "evaluations": {
            "missing": {
                "target": "polyview.evaluation.missing:MissingModalities",
                "test": parts.source(args["data"], args["split"]),
                "views": views,
                "targets": ("mask",),
                "retrieval": False,
                "batch_size": 50,
            }
        },
    }
