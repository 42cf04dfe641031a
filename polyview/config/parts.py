"""Parts that configs share, as specs; nothing is built here."""

from collections.abc import Mapping, Sequence
from typing import Any

from polyview.errors import InputError, nearest

OBJECTIVES = "polyview.objectives"


def unique_samples(batch: str, views: int, at_two_views: int) -> int:
    """Return the unique samples of a batch with `views` views of each.

    "fixed" keeps the number of views in a step, and so the cost of two views:
    `at_two_views * 2 / views` samples. "growing" keeps the number of samples (Shidani
    et al. 2024 compare both).
    """
    if batch not in ("fixed", "growing"):
        raise InputError(f"batch={batch!r}{nearest(batch, ['fixed', 'growing'])}")
    if views < 1:
        raise InputError(f"views={views}: a sample needs 2 or more")
    return at_two_views if batch == "growing" else max(2, at_two_views * 2 // views)


def contrastive(objective: str, temperature: float) -> dict:
    """Return the objective with a loss of `polyview.objectives.contrastive`.

    "supcon_labels" is `supcon` with the target `label`.
    """
    labels = {"labels": "label"} if objective == "supcon_labels" else {}
    objective = objective.removesuffix("_labels")
    loss: dict[str, Any] = {
        "partial": f"{OBJECTIVES}.contrastive:{objective}",
        "temperature": temperature,
        "normalize": True,
        "negatives": {
            "partial": f"{OBJECTIVES}.negatives:log_negatives",
            # "ring" needs less memory on many devices; dtype "bfloat16" is faster, but
            # rounds the scores.
            "exchange": "gather",
            "dtype": None,
        },
    }
    bound: dict | None = {"partial": f"{OBJECTIVES}.bounds:mutual_information_bound"}
    if objective == "arithmetic":
        loss["variant"] = "theorem"  # "listing" is no bound: set bound=None
    if objective == "sufficient_statistics":
        loss["renormalize"] = True
    if objective == "multi_crop":
        bound = {"partial": f"{OBJECTIVES}.bounds:pairwise_bound"}
    if objective in ("supcon", "mv_infonce", "mv_dhel"):
        bound = None  # no known bound on mutual information
    return {
        "target": f"{OBJECTIVES}.contrastive:Contrastive",
        "loss": loss,
        "modality": "image",
        "bound": bound,
        **labels,
    }


def source(name: str, split: str) -> dict:
    """Return the source of a split that `python -m polyview.prepare NAME` wrote."""
    return {
        "target": "polyview.data.sources.array_record:ArrayRecord",
        "name": name,
        "split": split,
    }


def prepared(name: str, split: str) -> dict:
    """Return `source(name, split)`, or a TFDS source if only TFDS's format exists."""
    from polyview.data.sources.protocol import default_data_dir
    from polyview.data.sources.tfds import tfds_folder

    ours = (default_data_dir() / name / "manifest.json").is_file()
    if not ours and tfds_folder(name) is not None:
        return source(name, split) | {"target": "polyview.data.sources.tfds:Tfds"}
    return source(name, split)


def evaluated(run: Mapping, seen: Mapping, data: str) -> tuple[Any, Any]:
    """Return the train and test sources of `data`, or of a run if it names none.

    run: the run's config. seen: the spec of its evaluation. Raises InputError for a run
    that names no test data.
    """
    if data:
        return prepared(data, "train"), prepared(data, "test")
    if seen.get("test") is None:
        raise InputError("the run names no test data; give data=NAME")
    return run["source"], seen["test"]


def innermost(source: Mapping) -> Mapping:
    """Return the spec of the source inside others, such as the fonts of a character."""
    return innermost(source["source"]) if "source" in source else source


def constant_rate(base: float) -> dict:
    """Return the learning rate `base`, for any batch size."""
    return {"partial": "polyview.training.optimizer:constant", "base": base}


def generated(m: int, augment: str, **options: Any) -> dict:
    """Return m views of an image, by an augmentation of `polyview.data.augment`.

    Images without labels need targets=().
    """
    return {
        "target": "polyview.data.views:Generated",
        "m": m,
        "augment": {"target": f"polyview.data.augment:{augment}", **options},
        "targets": ("label",),
    }


def image_model(
    encoder: dict,
    projector: dict,
    photometry: dict | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: str = "float32",
    param_dtype: str = "float32",
    frozen: bool = False,
) -> dict:
    """Return a model with one tower, for images; see `polyview.nn.towers:Tower`.

    dtype is the type of computations, param_dtype that of the stored parameters.
    """
    types = {"dtype": dtype, "param_dtype": param_dtype}
    tower = {
        "partial": "polyview.nn.towers:Tower",
        "encoder": {**encoder, **types},
        "projector": {**projector, **types},
        "photometry": photometry,
        "mean": mean,
        "std": std,
        "frozen": frozen,
    }
    return {"partial": "polyview.nn.towers:Towers", "towers": {"image": tower}}


def frozen(
    train: dict,
    test: dict,
    size: int,
    fraction: float,
    k: int | Sequence[int] = 20,
    per_class: Sequence[int] = (),
    draws: int = 5,
) -> dict:
    """Return frozen features on whole, central views: kNN and a linear-probe sweep.

    Few-shot kNN lets `per_class` training rows a class vote, drawn `draws` times.
    """
    few_shot = {"per_class": per_class, "draws": draws} if per_class else {}
    return {
        "target": "polyview.evaluation.frozen:FrozenFeatures",
        "train": train,
        "test": test,
        "views": generated(1, "ResizeCenterCrop", size=size, fraction=fraction),
        "modality": "image",
        "label": "label",
        "batch_size": 500,
        # The fraction of train for choosing the probe's hyper-parameters (ours).
        "validation": 0.1,
        # k and temperature of Caron et al. 2021.
        "knn": {
            "target": "polyview.evaluation.knn:WeightedKnn",
            "k": k,
            "temperature": 0.07,
            **few_shot,
        },
        # The grid and the number of steps are ours.
        "probe": {
            "target": "polyview.evaluation.probe:LinearProbe",
            "learning_rates": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
            "weight_decays": (0.0, 1e-4, 1e-3, 1e-2),
            "steps": 2000,
            "batch_size": 500,
        },
    }


def observed(
    fields: dict, shapes: dict, dtypes: dict, targets: tuple = (), **options: Any
) -> dict:
    """Return observed views: the arguments of `polyview.data.observed:Observed`."""
    return {
        "target": "polyview.data.observed:Observed",
        "fields": fields,
        "shapes": shapes,
        "dtypes": dtypes,
        "targets": targets,
        **options,
    }


def tower(encoder: dict, out: int, **options: Any) -> dict:
    """Return a tower; a critic compares its global and local features in `out` dims."""
    head = {"partial": "polyview.nn.heads:MutualInformationHead", "out": out}
    return {
        "partial": "polyview.nn.towers:Tower",
        "encoder": encoder,
        "projector": head,
        "local": head,
        **options,
    }


# Each cross-modal method's terms beside its task: `polyview.objectives.crossmodal`.
TERMS: dict[str, tuple[str, ...]] = {
    "supervised": (),
    "intra": ("CR",),  # local Deep InfoMax within each modality
    "clip": ("RR",),  # pairs of globals, cosine
    "cmim": ("XX",),
    "polyview": (),
}


def cross_modal(
    method: str,
    tasks: dict,
    *,
    weight: float,
    estimator: str,
    drop: float,
    alone: float = 0.0,
    temperature: float = 0.1,
    positions: int | None = None,
    study: str | None = None,
) -> dict:
    """Return the objective of a method, a key of TERMS, with its terms at `weight`.

    "polyview" contrasts each view with all other views of its sample by the geometric
    loss. tasks: {target: name of its loss}. study: a target, also of the views; samples
    with the same value are never negatives of each other.
    """
    if method not in TERMS:
        raise InputError(f"method={method!r}{nearest(method, TERMS)}")
    estimators = ("info_nce", "jensen_shannon", "donsker_varadhan", "nwj")
    if estimator not in estimators:
        raise InputError(f"estimator={estimator!r}{nearest(estimator, estimators)}")
    supervised = f"{OBJECTIVES}.supervised"
    critic: dict[str, Any] = {"partial": f"{OBJECTIVES}.crossmodal:scaled_dot"}
    # Clip of AMDIM (Bachman et al. 2019), whose penalty is .05; .04 is that of the code
    # of Fedorov et al. 2024.
    critic |= {"clip": 20.0, "penalty": 0.04}
    if method == "clip":
        critic = {
            "partial": f"{OBJECTIVES}.crossmodal:cosine",
            "temperature": temperature,
        }
    geometric = contrastive("geometric", temperature)["loss"]
    return {
        "target": f"{OBJECTIVES}.crossmodal:CrossModal",
        "tasks": {t: {"partial": f"{supervised}:{loss}"} for t, loss in tasks.items()},
        "task_weight": 1.0,
        "alone_weight": alone,
        "terms": {
            name: weight if name in TERMS[method] else 0.0
            for name in ("CR", "XX", "RR", "CC")
        },
        "estimator": {"partial": f"{OBJECTIVES}.bounds:{estimator}"},
        "critic": critic,
        "polyview": geometric if method == "polyview" else None,
        "polyview_weight": weight if method == "polyview" else 0.0,
        "train_drop_prob": drop,
        "positions": positions,
        "study": study,
    }


def paired(loss: str, weight: float) -> dict:
    """Return the keys of a `cross_modal` objective that add a loss of matched pairs.

    loss: of `polyview.objectives.pairs`, "clip" or "siglip", over every two views. The
    model needs `learnt_scale(loss)` as its critic.
    """
    pairs = f"{OBJECTIVES}.pairs"
    return {
        "pairs": {
            "target": f"{pairs}:Pairs",
            "loss": {
                "partial": f"{pairs}:{loss}",
                "exchange": "gather",  # "ring" needs less memory on many devices
            },
            "between": None,
        },
        "pairs_weight": weight,
    }


def learnt_scale(loss: str) -> dict:
    """Return the critic that learns the scale of a loss, "clip" or "siglip"."""
    numbers: dict[str, dict] = {
        # Radford et al. 2021, section 2.5: a temperature of .07; the scale at most 100.
        "clip": {"scale": 1 / 0.07, "most": 100.0, "bias": None},
        # Zhai et al. 2023, section 3.2.
        "siglip": {"scale": 10.0, "most": None, "bias": -10.0},
    }
    return {"partial": "polyview.nn.critics:CosineCritic", **numbers[loss]}
