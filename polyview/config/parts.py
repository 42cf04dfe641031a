"""Parts that configs share, as specs: nothing of a model is built here."""

from polyview.errors import InputError, nearest

OBJECTIVES = "polyview.objectives"


def unique_samples(batch: str, views: int, at_two_views: int) -> int:
    """Unique samples of a batch when the number of views grows.

    "fixed" keeps the views of a step, so that its cost is that of two views:
    `at_two_views * 2 / views` samples. "growing" keeps the samples (Shidani et al. 2024
    compare both).
    """
    if batch not in ("fixed", "growing"):
        raise InputError(f"batch={batch!r}{nearest(batch, ['fixed', 'growing'])}")
    if views < 1:
        raise InputError(f"views={views}: a sample needs 2 or more")
    return at_two_views if batch == "growing" else max(2, at_two_views * 2 // views)


def contrastive(objective: str, temperature: float) -> dict:
    """The objective of the named loss of `polyview.objectives.contrastive`."""
    loss = {
        "partial": f"{OBJECTIVES}.contrastive:{objective}",
        "temperature": temperature,
        "normalize": True,
        "negatives": {
            "partial": f"{OBJECTIVES}.negatives:log_negatives",
            # "ring" needs less memory on many devices; "bfloat16" is faster, and rounds
            # the scores.
            "exchange": "gather",
            "dtype": None,
        },
    }
    bound = {"partial": f"{OBJECTIVES}.bounds:mutual_information_bound"}
    if objective == "arithmetic":
        loss["variant"] = "theorem"  # with "listing", set bound=None: it bounds nothing
    if objective == "sufficient_statistics":
        loss["renormalize"] = True
    if objective == "multi_crop":
        bound = {"partial": f"{OBJECTIVES}.bounds:pairwise_bound"}
    if objective in ("supcon", "mv_infonce", "mv_dhel"):
        bound = None  # these losses bound no mutual information we know of
    return {
        "target": f"{OBJECTIVES}.contrastive:Contrastive",
        "loss": loss,
        "modality": "image",
        "bound": bound,
    }


def source(name: str, split: str) -> dict:
    """A split of a data set that `python -m polyview.prepare NAME` wrote."""
    return {
        "target": "polyview.data.sources.array_record:ArrayRecord",
        "name": name,
        "split": split,
    }


def prepared(name: str, split: str) -> dict:
    """As `source`; or a split in TFDS's format, where that is what lies there."""
    from polyview.data.sources.protocol import default_data_dir
    from polyview.data.sources.tfds import tfds_folder

    ours = (default_data_dir() / name / "manifest.json").is_file()
    if not ours and tfds_folder(name) is not None:
        return source(name, split) | {"target": "polyview.data.sources.tfds:Tfds"}
    return source(name, split)


def constant_rate(base: float) -> dict:
    """The learning rate `base`, at any batch size."""
    return {"partial": "polyview.training.optimizer:constant", "base": base}


def generated(m: int, augment: str, **options) -> dict:
    """m views of an image by the named augmentation of `polyview.data.augment`.

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
    mean,
    std,
    dtype: str = "float32",
    param_dtype: str = "float32",
    frozen: bool = False,
) -> dict:
    """One tower for images: the arguments of `polyview.nn.towers:Tower`, and the types.

    dtype is what the layers compute in, param_dtype what their parameters are kept in.
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


def frozen(train: dict, test: dict, size: int, fraction: float) -> dict:
    """Frozen features on whole, central views: kNN and the linear-probe sweep."""
    return {
        "target": "polyview.evaluation.frozen:FrozenFeatures",
        "train": train,
        "test": test,
        "views": generated(1, "ResizeCenterCrop", size=size, fraction=fraction),
        "modality": "image",
        "label": "label",
        "batch_size": 500,
        # The share of train on which the probe's hyper-parameters are chosen; ours.
        "validation": 0.1,
        # k and temperature of Caron et al. 2021.
        "knn": {
            "target": "polyview.evaluation.knn:WeightedKnn",
            "k": 20,
            "temperature": 0.07,
        },
        # The grid and the length are ours.
        "probe": {
            "target": "polyview.evaluation.probe:LinearProbe",
            "learning_rates": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
            "weight_decays": (0.0, 1e-4, 1e-3, 1e-2),
            "steps": 2000,
            "batch_size": 500,
        },
    }


def observed(
    fields: dict, shapes: dict, dtypes: dict, targets: tuple[str, ...] = (), **options
) -> dict:
    """Views that were recorded: the arguments of `polyview.data.observed:Observed`."""
    return {
        "target": "polyview.data.observed:Observed",
        "fields": fields,
        "shapes": shapes,
        "dtypes": dtypes,
        "targets": targets,
        **options,
    }


def tower(encoder: dict, out: int, **options) -> dict:
    """A tower whose global and local features a critic compares in `out` dimensions."""
    head = {"partial": "polyview.nn.heads:MutualInformationHead", "out": out}
    return {
        "partial": "polyview.nn.towers:Tower",
        "encoder": encoder,
        "projector": head,
        "local": head,
        **options,
    }


# What a cross-modal method adds to its task; see `polyview.objectives.crossmodal`.
TERMS = {
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
    """The objective of a method: a key of TERMS, its terms at `weight`.

    "polyview" contrasts each look with all the rest of its sample by the geometric
    loss. `tasks` maps a target to the name of its loss; `study` is the target, of the
    views too, that says which samples are never negatives of each other.
    """
    if method not in TERMS:
        raise InputError(f"method={method!r}{nearest(method, TERMS)}")
    estimators = ("info_nce", "jensen_shannon", "donsker_varadhan", "nwj")
    if estimator not in estimators:
        raise InputError(f"estimator={estimator!r}{nearest(estimator, estimators)}")
    supervised = f"{OBJECTIVES}.supervised"
    critic = {"partial": f"{OBJECTIVES}.crossmodal:scaled_dot"}
    # Clip and penalty of AMDIM (Bachman et al. 2019).
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
