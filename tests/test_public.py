"""The public API: from a run's path to features, the losses, and what `help` tells."""

import ast
import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import polyview
from polyview import devices
from polyview.config.spec import build
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError
from polyview.evaluation.features import extract
from polyview.objectives import contrastive
from polyview.runs.embedding import embed
from polyview.runs.encoding import viewing
from polyview.runs.load import evaluated_model
from polyview.training.train import train
from polyview.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
LOSSES = [n for n, home in polyview._HOMES.items() if home == contrastive.__name__]


@pytest.fixture
def grey(digits_run, data_dir, monkeypatch):
    """The run of a network for grey images, loaded."""
    monkeypatch.setenv("POLYVIEW_DATA", str(data_dir))
    return polyview.load(digits_run())


@pytest.fixture(scope="module")
def colour(data_dir, small_digits, of_photos, photos, tmp_path_factory):
    """The run of a network for photographs."""
    workdir = tmp_path_factory.mktemp("colour") / "run"
    config = of_photos(small_digits("views=2", steps=1), photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(data_dir))
        train(Trainer(config), workdir)
    return workdir


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of photographs of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in "cabdefgh":
        size = *rng.integers(8, 20, 2), 3
        pixels = rng.integers(0, 255, size).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def test_the_readme_gives_features_of_a_folder(colour, photos, tmp_path, monkeypatch):
    """The Python of the README runs as it stands, and does what `embed` does."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (lines,) = [block for block in blocks if "polyview.load" in block]
    assert len([line for line in lines.splitlines() if line.strip()]) <= 6
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "in1k").symlink_to(colour)
    (tmp_path / "photos").symlink_to(photos)
    names: dict = {}
    exec(lines, names)
    embed(colour, str(photos), tmp_path / "x.npz", batch_size=8)
    with np.load(tmp_path / "x.npz") as file:
        assert polyview.Folder(photos).files == file["id"].tolist()
        np.testing.assert_allclose(names["features"], file["embedding"], rtol=1e-5)


def test_images_however_they_are_given_have_the_same_features(colour, photos):
    run = polyview.load(colour)
    expected = run.encode(photos, batch_size=8)
    assert expected.shape[0] == 8 and expected.dtype == np.float32
    paths = [photos / name for name in polyview.Folder(photos).files]
    pictures = [Image.open(path) for path in paths]
    given = {
        "a folder": polyview.Folder(photos),
        "paths": paths,
        "strings": tuple(map(str, paths)),
        "pictures": pictures,
        "bytes": [path.read_bytes() for path in paths],
        "arrays": list(map(np.asarray, pictures)),
    }
    for name, data in given.items():
        found = run.encode(data, batch_size=8)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)
    one = run.encode(paths[0], batch_size=3)
    np.testing.assert_allclose(one, expected[:1], rtol=1e-5)


def test_arrays_a_source_and_a_prepared_name_are_those_of_the_evaluation(
    grey, digits_run
):
    source = ArrayRecord("digits", "test")
    mesh = devices.make_mesh()
    everywhere = polyview.load(digits_run(), sharding=devices.replicated(mesh))
    model = evaluated_model(everywhere, devices.replicated(mesh))
    with jax.set_mesh(mesh):
        views = build(viewing(grey.config).views)
        expected = extract(model, source, views, batch_size=64, mesh=mesh)
    images = np.stack([source[i]["image"] for i in range(40)])
    for features in ("h", "z"):
        wanted = getattr(expected, features)
        for data in ("digits:test", source):
            found = grey.encode(data, features=features, batch_size=64)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        found = grey.encode(images, features=features)
        np.testing.assert_allclose(found, wanted[:40], rtol=1e-4, atol=1e-5)
    found = grey.encode(jax.numpy.asarray(images[:3]))
    np.testing.assert_allclose(found, expected.h[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (np.full((3, 8, 8, 1), 99, np.float32), r"float32 has values 99 .. 99, outs"),
        # One image without an axis of rows is not eight of [8, 1] pixels.
        (np.zeros((8, 8, 1), np.uint8), r"4 axes .*'image', not \(8, 8, 1\).*x\[None"),
        (np.zeros((5, 8, 8), np.uint8), r"grey images \[n, h, w\] are x\[..., None\]"),
        (Image.new("L", (8, 8)), r"one image is a list of one: \[image\]"),
        (b"an image", r"one image is a list of one: \[image\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), "3 channels, but in_channels=1"),
        (np.zeros(8, np.uint8), r"a row a sample.*one is x\[None\]"),
        (np.zeros((0, 8, 8, 1), np.uint8), "no rows"),
        ([], "no rows"),
        ([b"no image"], "row 0: .*not an image"),
        (["/nowhere/x.png"], "/nowhere/x.png: No such file"),
        ("nowhere", "nowhere is not a folder, and no data"),
        ([3], "cannot encode a int"),
        (3, "cannot encode a int"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(grey, data, why):
    with pytest.raises(InputError, match=why) as refusal:
        grey.encode(data)
    assert len(str(refusal.value).splitlines()) <= 2


def test_a_file_that_cannot_be_read_is_named_and_no_row_is_lost(
    colour, photos, tmp_path
):
    run = polyview.load(colour)
    paths = [photos / "a.png", tmp_path / "cut.png", photos / "b.png"]
    paths[1].write_bytes(paths[0].read_bytes()[:60])
    with pytest.raises(InputError, match="cut.png: image"):
        run.encode(paths)
    with pytest.raises(InputError, match="features is 'y', not 'h' or 'z'"):
        run.encode(paths[:1], features="y")
    with pytest.raises(InputError, match="batch_size is 0"):
        run.encode(paths[:1], batch_size=0)
    with pytest.raises(InputError, match="'text'"):
        run.encode(paths[:1], modality="text")


def test_a_row_that_was_unreadable_for_a_moment_is_not_left_out(grey):
    """Fewer features than rows would be those of other rows."""

    class Flaky(ArrayRecord):
        failed = False

        def __getitem__(self, index):
            if index == 5 and not self.failed:
                self.failed = True
                raise CorruptRecord("the disk is away")
            return super().__getitem__(index)

        __getitems__ = None

    with pytest.raises(InputError, match="row 5: could not be read before"):
        grey.encode(Flaky("digits", "test"), batch_size=64)


def test_a_run_describes_itself_in_a_few_lines(grey):
    lines = repr(grey).splitlines()
    assert 1 < len(lines) <= 20 and max(map(len, lines)) <= 88
    assert "step 2" in lines[0] and "resnet_tiny" in repr(grey)


@pytest.mark.parametrize("name", LOSSES)
def test_help_of_a_loss_tells_how_to_use_it(name):
    loss = getattr(polyview, name)
    assert loss is getattr(contrastive, name)
    text = inspect.getdoc(loss)
    for word in ("float[b, m, d]", "temperature", "normalize", "mean", "ValueError"):
        assert word in text, word
    assert re.search(r"\b(19|20)\d\d\b", text), "the source's year"
    parameters = inspect.signature(loss).parameters
    assert ("present" in parameters) <= ("present" in text and "anchors" in text)
    for parameter in parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


def test_the_mean_that_help_names_is_that_of_the_views_there_are():
    """With a view missing, sum over anchors is the loss without that view's row."""
    z = jax.random.normal(jax.random.key(0), (4, 2, 8))
    present = np.ones((4, 2), bool)
    present[3] = False
    losses = polyview.geometric(z, temperature=0.1, present=present)
    mean = losses.sum() / polyview.anchors(present).sum()
    whole = polyview.geometric(z[:3], temperature=0.1).mean()
    np.testing.assert_allclose(mean, whole, rtol=1e-6)


def test_every_public_name_is_there_and_typed_for_editors():
    tree = ast.parse(Path(polyview.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert imported == polyview._HOMES
    assert sorted(polyview.__all__) == polyview.__all__
    for name in polyview.__all__:
        assert getattr(polyview, name).__name__ == name
        assert name in dir(polyview)
    with pytest.raises(AttributeError, match="no attribute 'geometrik'"):
        _ = polyview.geometrik
