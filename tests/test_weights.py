"""Encoders exported to or imported from other libraries keep their features."""

import dataclasses
import functools
import json
import pickle
from pathlib import Path

import cv2
import jax
import ml_collections
import numpy as np
import pytest
import sklearn.datasets
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from polyview import export
from polyview.config import parts
from polyview.config.file import load_config
from polyview.config.text import from_json, to_json
from polyview.data.sources.memory import InMemory
from polyview.errors import InputError
from polyview.model import Parts
from polyview.runs import exporting, positions, torch_names
from polyview.runs.checkpoint import Checkpoints
from polyview.runs.checksum import flatten
from polyview.runs.importing import import_weights
from polyview.runs.init import Entry, lay_over
from polyview.runs.load import encoder_of, load, shapes_of

ROOT = Path(__file__).parent.parent
# Two photographs from scikit-learn.
PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"


@pytest.fixture
def run(digits, tmp_path) -> Path:
    """A run on the digits with no array at its initial value."""
    return written(digits("views=2"), tmp_path / "run")


def written(config, folder: Path) -> Path:
    """A run with one checkpoint of random arrays, at step 4."""
    random = np.random.default_rng(0)
    model = made(to_json(config))

    def array(x):  # kernels scaled by fan-in, vectors around one
        kernel = len(x.shape) > 1
        size = np.prod(x.shape[:-1]) ** -0.5 if kernel else 0.2
        return jax.numpy.asarray(
            (not kernel) + size * random.normal(size=x.shape), x.dtype
        )

    state = {"params": model.parts.params, "statistics": model.parts.statistics}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(4, jax.tree.map(array, state), to_json(config))
    (folder / "config.json").write_text(to_json(config))
    return folder


def test_an_exported_encoder_is_imported_unchanged(digits, run, tmp_path):
    report = exporting.export(run, "safetensors", tmp_path / "x.safetensors")
    assert "8 images agree" in report
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        about = json.loads(file.metadata()["polyview"])
    assert about["step"] == 4 and about["input"]["range"] == "0 to 1"
    assert about["model"]["arguments"]["width"] == 4
    config = digits("views=2", seed=7)
    import_weights(tmp_path / "x.safetensors", config, tmp_path / "adopted")
    ours, theirs = (encoder_of(load(at), "image") for at in (run, tmp_path / "adopted"))
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)
    with pytest.raises(InputError, match="already holds a run"):
        import_weights(tmp_path / "x.safetensors", config, tmp_path / "adopted")


def test_an_export_with_different_features_is_not_written(run, tmp_path, monkeypatch):
    right = torch_names.to_theirs

    def wrong(encoder, arrays, layout):
        return right(encoder, arrays | {"norm.bias": arrays["norm.bias"] + 1}, layout)

    monkeypatch.setattr(torch_names, "to_theirs", wrong)
    with pytest.raises(InputError, match="features of polyview differ by"):
        exporting.export(run, "safetensors", tmp_path / "x.safetensors")
    assert not list(tmp_path.glob("*.safetensors*"))


def test_invalid_exports_are_refused(run, tmp_path):
    for output, why in (("x.npz", "end in .safetensors"), ("there", "end in")):
        with pytest.raises(InputError, match=why):
            exporting.export(run, "safetensors", tmp_path / output)
    (tmp_path / "x.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match="already exists"):
        exporting.export(run, "safetensors", tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no modality 'text', only image"):
        exporting.export(
            run, "safetensors", tmp_path / "y.safetensors", modality="text"
        )


def test_a_stem_unknown_to_timm_is_refused(run, tmp_path):
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="timm has no ResNet of"):
        exporting.export(run, "timm", tmp_path / "x.safetensors")


def test_a_missing_library_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install '.\[export\]'"):
        exporting.export(run, "timm", tmp_path / "x.safetensors")


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def test_invalid_weight_files_are_refused_by_name(digits, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exporting.export(run, "safetensors", tmp_path / "good.safetensors")
    arrays = load_file("good.safetensors")
    first = "blocks.0.conv1.kernel"
    Path("pickle.safetensors").write_bytes(pickle.dumps(Trap()))
    Path("zip.safetensors").write_bytes(b"PK\x03\x04")
    Path("noise.safetensors").write_bytes(bytes(range(100)))
    Path("cut.safetensors").write_bytes(Path("good.safetensors").read_bytes()[:-9])
    save_file(arrays | {"blocks.0.gamma": arrays[first]}, "more.safetensors")
    save_file({n: a for n, a in arrays.items() if n != first}, "less.safetensors")
    save_file(arrays | {first: arrays[first][:1]}, "shape.safetensors")
    save_file(arrays | {first: arrays[first].ravel()}, "flat.safetensors")
    cases = {
        "pickle": "it looks like a pickle of torch.save",
        "zip": "it looks like a pickle of torch.save",
        "noise": "is not a safetensors file",
        "cut": "is not a safetensors file",
        "absent": "is not a file",
        "more": "1 arrays of .* no place at .*, as 'blocks.0.gamma'",
        "less": f"has no '{first}'",
        "shape": f"{first} of shape.safetensors has shape",
        "flat": f"{first} of flat.safetensors has shape",
    }
    for name, why in cases.items():
        with pytest.raises(InputError, match=why):
            import_weights(
                Path(f"{name}.safetensors"), digits("views=2"), tmp_path / "new"
            )
    assert not Path("trapped").exists() and not Path("new").exists()


@functools.cache
def made(text):
    """The model of a config, as shapes with a sharding."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    model = shapes_of(from_json(text), trust=None)
    shapes = jax.tree.map(lambda s: s.update(sharding=one), model.parts[1:])
    return dataclasses.replace(model, parts=Parts(model.parts.graph, *shapes))


def adopted(config, file, path="", modality="image", **options):
    """What an import takes from a file for an encoder, and the arrays by name.

    Only shapes of the model are made, so that nothing is compiled.
    """
    model = made(to_json(config))
    at = f"towers.{modality}.encoder"
    entry = Entry(at, str(file), path, **options)
    laid = lay_over([entry], model.module, model.parts[1:])
    arrays = {n: a for part in laid.parts for n, a in flatten(part).items()}
    return laid, {
        name.removeprefix(f"{at}."): np.asarray(array)
        for name, array in arrays.items()
        if isinstance(array, jax.Array)
    }


def state_of(config, layout, modality="image"):
    """Random arrays of an encoder of a config, ours and in a layout."""
    model, random = made(to_json(config)), np.random.default_rng(0)
    ours = {
        name: random.normal(size=x.shape).astype(np.float32)
        for name, x in encoder_of(model, modality).items()
    }
    encoder = model.module.towers[modality].encoder
    return ours, torch_names.to_theirs(encoder, ours, layout)


def vit(config, **options):
    """The config with a small ViT of 2 x 2 patches."""
    spec = {"partial": "polyview.nn.vit:ViT", "width": 16, "depth": 1, "heads": 2}
    spec |= {"patch": 4, "image": 8, "in_channels": 1} | options
    config = from_json(to_json(config))
    config.model.towers.image.encoder = ml_collections.ConfigDict(spec)
    return config


def same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array, err_msg=name)


@pytest.mark.parametrize("layout", ["timm", "safetensors"])
@pytest.mark.parametrize(
    "prefix", ["", "backbone.", "module.encoder_q.", "state_dict.model."]
)
def test_the_only_prefix_that_fits_is_stripped_and_told(
    digits, tmp_path, layout, prefix
):
    config, file = digits("views=2"), tmp_path / "x.safetensors"
    ours, theirs = state_of(config, layout)
    beside = {"fc.0.weight": np.ones(3), "fc.0.bias": np.full(3, np.nan)}
    named = {prefix + name: array for name, array in (theirs | beside).items()}
    if prefix:
        first = next(iter(theirs))
        named |= {f"aside.{first}": theirs[first], "epoch": np.ones(1)}
    save_file(named, file)
    laid, arrays = adopted(config, file)
    same(ours, arrays)
    left = ["aside", "epoch"] if prefix else []
    left += [f"{prefix}fc (2 arrays)"]
    if layout == "timm":
        left.append(f"num_batches_tracked ({sum('num_' in n for n in theirs)} arrays)")
    assert f"left out: {', '.join(sorted(left))}" in str(laid)
    assert (f"names below '{prefix}'" in str(laid)) == bool(prefix)


def test_of_two_encoders_in_a_file_one_must_be_named(digits, tmp_path):
    config, file = digits("views=2"), tmp_path / "moco.safetensors"
    ours, theirs = state_of(config, "timm")
    keys = {f"module.encoder_k.{name}": 2 * a for name, a in theirs.items() if a.ndim}
    queries = {f"module.encoder_q.{name}": array for name, array in theirs.items()}
    save_file(queries | keys | {"module.queue": np.ones(4)}, file)
    # The encoder itself before its moving average.
    why = (
        "'module.encoder_q.', 'module.encoder_k.'; name one: --prefix module.encoder_q"
    )
    with pytest.raises(InputError, match=why):
        adopted(config, file)
    for path in ("module.encoder_q", "module.encoder_q."):
        report = import_weights(file, config, tmp_path / path, prefix=path)
        same(ours, encoder_of(load(tmp_path / path), "image"))
        assert f"module.encoder_k ({len(keys)} arrays), module.queue" in report
    with pytest.raises(InputError, match="nothing at 'encoder'; expected: 'bn1.b"):
        adopted(config, file, "encoder")


def test_names_of_both_are_shown_where_no_prefix_fits(digits, tmp_path):
    config, file = digits("views=2"), tmp_path / "x.safetensors"
    _, theirs = state_of(config, "timm")
    save_file({f"net.{n}": a for n, a in theirs.items() if "bn1" not in n}, file)
    why = r"below 'net.', without '.*bn1.*expected: 'bn1.bias.*names: 'net.conv1"
    with pytest.raises(InputError, match=why):
        adopted(config, file)
    save_file({"stem.w": np.ones(2), "body.w": np.ones(2)}, file)
    with pytest.raises(InputError, match="'blocks.0.conv.*names: 'body.w', 'stem.w'$"):
        adopted(config, file)


def test_heads_are_left_out_but_what_changes_features_is_not(digits, tmp_path):
    config, file = vit(digits("views=2")), tmp_path / "x.safetensors"
    ours, theirs = state_of(config, "timm")
    beside = "mask_token head.weight classifier.1.bias pos_drop.x decoder_pred.bias"
    more = {name: np.ones(1) for name in beside.split()}
    save_file(theirs | more, file)
    laid, arrays = adopted(config, file)
    same(ours, arrays)
    told = "left out: classifier.1.bias, decoder_pred.bias, head.weight, mask_token"
    assert told in str(laid).replace("classifier,", "classifier.1.bias,").replace(
        "decoder_pred,", "decoder_pred.bias,"
    ).replace("head,", "head.weight,")
    scales = {f"blocks.0.ls{i}.gamma": np.ones(16) for i in (1, 2)}
    save_file(theirs | scales, file)
    with pytest.raises(InputError, match="2 arrays .*'blocks.0.ls1.gamma'.*--leave"):
        adopted(config, file)
    laid, arrays = adopted(config, file, leave=("blocks.*.gamma",))
    same(ours, arrays)
    assert "left out: blocks (2 arrays)" in str(laid)


@pytest.mark.parametrize("layout", ["timm", "safetensors"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(
    digits, tmp_path, layout, value
):
    config, file = digits("views=2"), tmp_path / "x.safetensors"
    _, theirs = state_of(config, layout)
    name = next(n for n in theirs if theirs[n].ndim == 1)
    theirs[name][1] = value
    save_file(theirs, file)
    with pytest.raises(InputError, match=f"{name} .*is not finite"):
        import_weights(file, config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_beyond_the_range_of_their_type_are_refused(digits, tmp_path):
    config, file = digits("views=2"), tmp_path / "x.safetensors"
    config.model.towers.image.encoder.param_dtype = "float16"
    _, theirs = state_of(config, "safetensors")
    theirs["conv.kernel"][0, 0, 0, 0] = 1e5
    save_file(theirs, file)
    with pytest.raises(InputError, match="conv.kernel .* 1 of .* as float16"):
        adopted(config, file)


def cubic(t: float) -> float:
    """Keys's kernel with a = -3/4, as PyTorch and OpenCV have it."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def convolved(grid, height, width):
    """A grid resized place by place, in float64; its border repeats beyond the edge."""
    h, w, d = grid.shape
    out = np.zeros((height, width, d))
    for i in range(height):
        for j in range(width):
            y, x = (i + 0.5) * h / height - 0.5, (j + 0.5) * w / width - 0.5
            for a in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for b in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    source = grid[min(max(a, 0), h - 1), min(max(b, 0), w - 1)]
                    out[i, j] += cubic(y - a) * cubic(x - b) * source
    return out


@pytest.mark.parametrize("sizes", [(4, 6, 7, 9), (7, 7, 4, 3), (1, 1, 3, 3), (5,) * 4])
def test_grids_are_resized_by_cubic_convolution(rng, sizes):
    grid = rng.normal(size=(*sizes[:2], 3))
    found = positions.bicubic(grid, *sizes[2:])
    np.testing.assert_allclose(found, convolved(grid, *sizes[2:]), atol=1e-12)
    opencv = cv2.resize(grid, sizes[:1:-1], interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(found, opencv, atol=1e-5)
    even = positions.bicubic(np.ones_like(grid), *sizes[2:])
    np.testing.assert_allclose(even, 1, atol=1e-12)  # the weights of a place sum to 1


@pytest.mark.parametrize("layout", ["timm", "torchvision", "safetensors"])
def test_learned_positions_are_resized_for_another_image_size(digits, tmp_path, layout):
    small, file = vit(digits("views=2")), tmp_path / "x.safetensors"
    ours, theirs = state_of(small, layout)
    save_file({f"module.{name}": array for name, array in theirs.items()}, file)
    laid, arrays = adopted(vit(small, image=12), file)
    assert "positions 2 x 2 -> 3 x 3, bicubic" in str(laid)
    old, new = ours.pop("position")[0], arrays.pop("position")[0]
    same(ours, arrays)
    np.testing.assert_array_equal(new[0], old[0])  # the class token's
    expected = convolved(old[1:].reshape(2, 2, -1).astype(np.float64), 3, 3)
    np.testing.assert_allclose(new[1:].reshape(3, 3, -1), expected, atol=1e-6)
    assert "bicubic" not in str(adopted(small, file)[0])


def test_positions_that_are_no_square_are_refused(digits, tmp_path):
    config, file = vit(digits("views=2")), tmp_path / "x.safetensors"
    _, theirs = state_of(config, "timm")
    for shape in ((1, 4, 16), (1, 5, 8), (5, 16)):
        save_file(theirs | {"pos_embed": np.ones(shape, np.float32)}, file)
        with pytest.raises(InputError, match="pos"):
            adopted(config, file)


def rows(name="", split=""):
    """Three rows with a view of each tower of `mixture`; the last two lack some."""
    random = np.random.default_rng(0)
    image, tokens, vector = (3, 8, 8, 1), (3, 6), (3, 5)
    return InMemory(
        {
            "image": list(random.integers(0, 256, image).astype(np.uint8)),
            "tokens": [*random.integers(0, 9, tokens).astype(np.int32)[:2], None],
            "vector": [*random.normal(size=vector).astype(np.float32)[:1], None, None],
            "label": np.arange(3) % 2,
        },
        targets={"label": {"kind": "class", "classes": 2, "names": ["cat", "dog"]}},
    )


def mixture(digits):
    """A config with a tower for each kind of encoder that other tests do not export."""
    image = {"width": 16, "depth": 1, "heads": 2, "patch": 4, "image": 8}
    image |= {"in_channels": 1, "partial": "polyview.nn.vit:ViT"}
    text = {"vocabulary": 9, "width": 8, "features": 4}
    encoders = {
        "mean": image | {"pool": "mean", "position": "sincos"},
        "set": text | {"partial": "polyview.nn.text:TokenSet"},
        "conv": text | {"partial": "polyview.nn.text:ConvText"},
        "order": text
        | {"partial": "polyview.nn.text:TextTransformer", "length": 6, "depth": 1},
        "vector": {"partial": "polyview.nn.mlp:Mlp", "inputs": 5, "features": 4},
    }
    fields = dict.fromkeys(encoders, "image")
    fields |= {"set": "tokens", "conv": "tokens", "order": "tokens", "vector": "vector"}
    shapes = {"image": (8, 8, 1), "tokens": (6,), "vector": (5,)}
    dtypes = {"image": "uint8", "tokens": "int32", "vector": "float32"}
    views = parts.observed(
        fields={name: (field,) for name, field in fields.items()},
        shapes={name: shapes[field] for name, field in fields.items()},
        dtypes={name: dtypes[field] for name, field in fields.items()},
    )
    plain = digits("views=2").to_dict()
    plain["model"]["towers"] = {
        name: {
            "partial": "polyview.nn.towers:Tower",
            "encoder": encoder,
            "projector": {"partial": "polyview.nn.heads:Identity"},
        }
        for name, encoder in encoders.items()
    }
    plain["views"], plain["source"] = views, {"target": "test_weights:rows"}
    plain["evaluations"]["frozen"] |= {"views": views, "test": plain["source"]}
    return from_json(to_json(plain))


def test_every_encoder_is_exported_and_imported_unchanged(digits, tmp_path):
    """Of one kind the features too, of tokens; `export` compares them for all."""
    config, trust = mixture(digits), ("test_weights",)
    for name in config.model.towers:  # that of the digits, and `vit`, are above
        file = tmp_path / f"{name}.safetensors"
        ours, theirs = state_of(config, "safetensors", name)
        save_file(theirs, file)
        same(ours, adopted(config, file, modality=name)[1])
        if name in ("set", "conv", "order", "vector"):
            with pytest.raises(InputError, match="ResNets and ViTs.*safetensors"):
                state_of(config, "timm", name)
    run = written(config, tmp_path / "run")
    file = tmp_path / "exported.safetensors"
    report = exporting.export(run, "safetensors", file, modality="set", trust=trust)
    assert "features of 2 images agree with polyview" in report
    ours = encoder_of(load(run, trust=trust), "set")
    same(ours, adopted(config, file, modality="set")[1])


def test_a_model_without_towers_has_no_encoder_to_export(tmp_path, monkeypatch):
    config = load_config(f"{ROOT}/configs/crossmodal_mri.py")
    monkeypatch.setattr(exporting, "load", lambda *_, **__: made(to_json(config)))
    with pytest.raises(InputError, match="Hemis.* has no towers.*--config.init=runs/a"):
        exporting.export(Path("runs/a"), "safetensors", tmp_path / "x.safetensors")


def randomised(network):
    """The network with no array or statistic at its initial value."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, array in network.state_dict().items():
            if not array.is_floating_point():
                continue
            noise = torch.randn(array.shape, generator=generator)
            if array.ndim > 1 and "pos" not in name and "class" not in name:
                fan = array[0].numel()
                array.copy_(noise * fan**-0.5)
            elif name.endswith("running_var"):
                array.copy_(1 + 0.5 * noise.tanh())
            else:
                array.add_(0.1 * noise)
    return network.eval()


def library_model(library: str, encoder: str):
    """The library's model, and a function for the features before its classifier."""
    import torch

    if library == "timm":
        import timm

        names = {"resnet50": "resnet50", "vit_b": "vit_base_patch16_224"}
        model = randomised(timm.create_model(names[encoder], num_classes=1000))
        return model, lambda x: model.forward_head(
            model.forward_features(x), pre_logits=True
        )
    import torchvision

    names = {"resnet50": "resnet50", "vit_b": "vit_b_16"}
    model = randomised(getattr(torchvision.models, names[encoder])())
    bare = getattr(torchvision.models, names[encoder])()
    bare.load_state_dict(model.state_dict())
    setattr(bare, "fc" if encoder == "resnet50" else "heads", torch.nn.Identity())
    return model, bare.eval()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet50", "vit_b"])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_library_weights_keep_their_features_both_ways(library, encoder, tmp_path):
    """Photograph features agree to 1e-4 of the largest; exported arrays are equal."""
    torch = pytest.importorskip("torch")
    pytest.importorskip(library)
    from safetensors.torch import save_file as save_torch

    model, features = library_model(library, encoder)
    save_torch(model.state_dict(), tmp_path / "theirs.safetensors")
    config = load_config(
        f"{ROOT}/configs/polyview_imagenet.py:encoder={encoder},dtype=float32"
    )
    run = tmp_path / "run"
    import_weights(tmp_path / "theirs.safetensors", config, run)

    loaded = load(run)
    images, _ = exporting.images_of(loaded.config, str(PHOTOGRAPHS), "image", ())
    assert images.shape == (2, 224, 224, 3)
    tower = loaded.module.towers["image"]
    x = exporting.normalised(images, tower)
    ours = np.asarray(tower.encoder(x, train=False)[0])
    with torch.no_grad():
        theirs = features(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert theirs.shape == ours.shape and theirs.std() > 1e-3
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()

    report = exporting.export(
        run, library, tmp_path / "x.safetensors", data=str(PHOTOGRAPHS)
    )
    assert f"2 images agree with {library}" in report
    before, after = (
        load_file(tmp_path / name) for name in ("theirs.safetensors", "x.safetensors")
    )
    heads = {"fc.weight", "fc.bias", "head.weight", "head.bias"}
    heads |= {"heads.head.weight", "heads.head.bias"}
    assert before.keys() - after.keys() <= heads and after.keys() <= before.keys()
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.slow
def test_fixed_positions_are_exported_as_learned_ones(tmp_path):
    """A ViT with fixed positions and no class token, in timm's layout."""
    pytest.importorskip("timm")
    config = load_config(f"{ROOT}/configs/polyview_imagenet.py:encoder=vit_s")
    config.model.towers.image.encoder.update(
        {"pool": "mean", "position": "sincos", "depth": 2}
    )
    written(config, tmp_path / "run")
    report = exporting.export(
        tmp_path / "run", "timm", tmp_path / "x.safetensors", data=str(PHOTOGRAPHS)
    )
    assert "2 images agree with timm" in report
    with pytest.raises(InputError, match="torchvision's ViT has a class token"):
        exporting.export(
            tmp_path / "run",
            "torchvision",
            tmp_path / "y.safetensors",
            data=str(PHOTOGRAPHS),
        )


def test_every_array_has_exactly_one_name_per_layout(digits):
    """No two arrays of an encoder share a name in a layout; axes are restored."""
    for encoder in ("resnet50", "vit_b"):
        config = load_config(f"{ROOT}/configs/polyview_imagenet.py:encoder={encoder}")
        if encoder == "vit_b":
            config.model.towers.image.encoder.update({"depth": 2, "width": 48})
        model = shapes_of(config)
        random = np.random.default_rng(0)
        shapes = {n: x.shape for n, x in encoder_of(model, "image").items()}
        arrays = {n: random.random(s, np.float32) for n, s in shapes.items()}
        module = model.module.towers["image"].encoder
        for layout in export.FORMATS:
            exported = torch_names.to_theirs(module, arrays, layout)
            count = sum("num_batches" not in name for name in exported)
            assert count == len(arrays)
            detected, back = torch_names.to_ours(module, shapes, exported)
            assert detected == (
                "timm" if layout == "torchvision" and encoder == "resnet50" else layout
            )
            assert back.keys() == arrays.keys()
            for name, array in arrays.items():
                np.testing.assert_array_equal(back[name], array, err_msg=name)
