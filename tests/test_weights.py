"""Encoders exported to or imported from other libraries keep their features."""

import json
import pickle
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
import sklearn.datasets
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from polyview import export
from polyview.config.file import load_config
from polyview.config.text import to_json
from polyview.errors import InputError
from polyview.runs import exporting, torch_names
from polyview.runs.checkpoint import Checkpoints
from polyview.runs.importing import import_weights
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
    model = shapes_of(config)

    def array(x):  # kernels scaled by fan-in, vectors around one
        kernel = len(x.shape) > 1
        size = np.prod(x.shape[:-1]) ** -0.5 if kernel else 0.2
        return jax.numpy.asarray(
            (not kernel) + size * random.normal(size=x.shape), x.dtype
        )

    parts = {"params": model.parts.params, "statistics": model.parts.statistics}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(4, jax.tree.map(array, parts), to_json(config))
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


def test_a_common_prefix_of_names_is_reported(digits, run, tmp_path):
    module = load(run).module.towers["image"].encoder
    arrays = {n: np.asarray(a) for n, a in encoder_of(load(run), "image").items()}
    theirs = torch_names.to_theirs(module, arrays, "timm")
    query = {f"module.encoder_q.{name}": array for name, array in theirs.items()}
    query |= {"module.encoder_k.conv1.weight": theirs["conv1.weight"]}
    save_file(query, tmp_path / "moco.safetensors")
    for prefix in ("backbone.", "module."):
        named = {prefix + name: array for name, array in theirs.items()}
        save_file(named, tmp_path / f"{prefix}safetensors")
    cases = {"moco": "module.encoder_q.", "backbone": "backbone.", "module": "module."}
    for file, prefix in cases.items():
        why = f"begin with '{prefix}': it has '{prefix}.*' where '.*' is expected"
        with pytest.raises(InputError, match=why):
            import_weights(
                tmp_path / f"{file}.safetensors", digits("views=2"), tmp_path / "new"
            )


def test_a_vit_with_fixed_positions_is_exported_and_imported(digits, tmp_path):
    config = digits("views=2")
    config.model.towers.image.encoder = ml_collections.ConfigDict(
        {
            "partial": "polyview.nn.vit:ViT",
            "width": 16,
            "depth": 1,
            "heads": 2,
            "patch": 4,
            "image": 8,
            "in_channels": 1,
            "pool": "mean",
            "position": "sincos",
        }
    )
    run = written(config, tmp_path / "run")
    report = exporting.export(run, "safetensors", tmp_path / "x.safetensors")
    assert "8 images agree with polyview" in report
    import_weights(tmp_path / "x.safetensors", config, tmp_path / "again")


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
