"""Untrusted input is refused or bounded: nothing in it is executed, nothing hangs.

`FUZZ` gives each reader a strategy for its input. Tests draw 25 examples by default;
`benchmarks.faults` draws for as long as requested.
"""

import datetime
import functools
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from polyview.config.file import load_config
from polyview.config.overrides import apply_overrides, parse_arguments, parse_flags
from polyview.config.schema import check_config
from polyview.config.spec import build
from polyview.config.text import dotted, from_json, text_digest, to_json
from polyview.config.trust import allow_list, check_trusted
from polyview.data import decode
from polyview.data.prepare import brats, fetch, imagenet2012, records
from polyview.data.sources.array_record import ArrayRecord, pack, unpack
from polyview.data.sources.folder import Folder
from polyview.data.sources.protocol import CorruptRecord
from polyview.data.sources.tfds import Tfds
from polyview.errors import InputError
from polyview.model import abstract_module
from polyview.reporting.html import encoded
from polyview.reporting.page import html_page
from polyview.reporting.read import read as read_runs
from polyview.reporting.tables import summary
from polyview.runs import checkpoint, metrics, torch_names
from polyview.runs.load import encoder_of, load, model_of, shapes_of
from polyview.runs.weights import read_file
from polyview.training.nonfinite import replay_run
from polyview.training.trainer import Trainer
from sgi import dqn_replay, recording

ROOT = Path(__file__).parent.parent
BOMB = "[" * 100_000  # too deep for a recursive reader
TEXT = json.dumps({"model": {"target": "polyview.nn:Nothing"}})
SOON = datetime.timedelta(seconds=20)  # far more than needed, far less than a hang


# Strategies for the inputs.


@st.composite
def cut(draw, data: bytes) -> bytes:
    """Bytes with a few changed, inserted or removed, or with the end missing."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.sampled_from([1, 1, 2, 4, 64]))
        match draw(st.sampled_from(["change", "insert", "remove", "end"])):
            case "change":
                old = data[position : position + length]
                data[position : position + length] = draw(
                    st.binary(min_size=len(old), max_size=len(old))
                    | st.sampled_from([b"\x00" * len(old), b"\xff" * len(old)])
                )
            case "insert":
                data[position:position] = draw(st.binary(max_size=length))
            case "remove":
                del data[position : position + length]
            case "end":
                del data[position:]
    return bytes(data)


ODD = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**30, 1e400, -0.0, float("nan")])
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["..", "../x", "/etc/passwd", "a\0b", "os:system", "\ud800"])
)
JSON = st.recursive(
    ODD,
    lambda x: (
        st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def altered(draw, tree) -> str:
    """JSON with a few values replaced or removed, or text that is not JSON."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text(max_size=20) | st.sampled_from([BOMB, "{}", "[]", "1", ""]))
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        node, places = tree, []
        while isinstance(node, dict | list) and node:
            keys = sorted(node) if isinstance(node, dict) else range(len(node))
            key = draw(st.sampled_from(list(keys)))
            places.append((node, key))
            node = node[key]
        if not places:
            break
        node, key = draw(st.sampled_from(places))
        if draw(st.booleans()):
            node[key] = draw(JSON)
        else:
            del node[key]
    return json.dumps(tree)


# Readers: each takes a drawn input and a folder, and may raise its documented errors.


def config_parser(drawn, _) -> None:
    """Flags, arguments and values applied to an existing config."""
    key, value, flag, argument = drawn
    config = from_json(digits_text())
    for attempt in (
        lambda: apply_overrides(config, {key: value}),
        lambda: check_config(config),
        lambda: to_json(config),
        lambda: parse_flags([flag], known=("config", "workdir")),
        lambda: parse_arguments(argument, views=4, rate=0.1, name="a"),
        lambda: load_config(flag),
    ):
        try:
            attempt()
        except InputError as error:
            assert len(str(error)) <= 2000


def config_json(text: str, _) -> None:
    """A config from a checkpoint: its syntax, ranges and targets."""
    try:
        config = from_json(text)
        check_config(config)
        for part in ("views", "optimizer", "objective"):
            build(config.get(part), allow_list(), where=part)
    except InputError:
        pass


def run(text: str, folder: Path) -> None:
    """An untrusted run with another config: its model is built or refused."""
    step = copy_of(a_run(), folder / "run" / "checkpoints" / "4")
    for item, value in (("config", text), ("digest", text_digest(text))):
        found = json.loads((step / item / "metadata").read_text())
        found["config"] = value
        (step / item / "metadata").write_text(json.dumps(found))
    try:
        load(folder / "run")
    except InputError:
        pass


def manifest(text: str, folder: Path) -> None:
    """The manifest of a data set."""
    directory = copy_of(data_set(), folder / "set")
    (directory / "manifest.json").write_text(text, errors="surrogatepass")
    try:
        rows = ArrayRecord("set", data_dir=folder)
        rows[0], rows[len(rows) - 1]
    except (InputError, CorruptRecord):
        pass


def recorded_play(drawn: tuple[str, bytes], folder: Path) -> None:
    """The manifest of recorded play, or its file."""
    text, content = drawn
    for name, changed in (
        ("manifest.json", text.encode("utf-8", "replace")),
        (FILE, content),
    ):
        directory = copy_of(play(), folder / "set")
        (directory / name).write_bytes(changed)
        try:
            found = recording.read("set", data_dir=folder)
            assert len(found.frames) == len(found.action) <= 100
        except InputError:
            pass


def record(content: bytes, _) -> None:
    """A record of a data set."""
    try:
        unpack(content)
    except CorruptRecord:
        pass


def image(content: bytes, _) -> None:
    """An image of any format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damage that it repairs
        try:
            assert decode.decode(content).shape[2] == 3
        except CorruptRecord:
            pass


def dqn_replay_file(drawn: tuple[str, bytes, bool], folder: Path) -> None:
    """A DQN Replay file, altered before or after it is decompressed."""
    kind, content, packed = drawn
    directory = copy_of(exported(), folder / "replay")
    path = directory / f"$store$_{kind}_ckpt.1.gz"
    if not packed:
        content = gzip.compress(content + gzip.decompress(path.read_bytes())[128:], 1)
    path.write_bytes(content)
    try:
        (files,) = dqn_replay.find(directory)
        assert len(list(dqn_replay.Checkpoint(files, actions=6))) <= 100
    except InputError:
        pass


def tar(content: bytes, folder: Path) -> None:
    """A tar of tars of images."""
    (folder / "x.tar").write_bytes(content)
    try:
        imagenet2012._train_members(folder / "x.tar")
    except (InputError, tarfile.TarError):
        pass


def volume(content: bytes, folder: Path) -> None:
    """A volume of BraTS."""
    (folder / "x.nii").write_bytes(content)
    try:
        brats._read(folder / "x.nii")
    except InputError:
        pass


def weights(content: bytes, folder: Path) -> None:
    """Another library's weights: refused, or arrays of the requested shapes."""
    (folder / "x.safetensors").write_bytes(content)
    encoder, shapes = encoder_of_digits()
    try:
        theirs = read_file(folder / "x.safetensors")
        _, arrays = torch_names.to_ours(encoder, shapes, theirs)
    except InputError:
        return
    assert {name: array.shape for name, array in arrays.items()} == shapes


def history(content: bytes, folder: Path) -> None:
    """The metrics of a run."""
    (folder / "metrics.jsonl").write_bytes(content)
    try:
        metrics.read(folder / "metrics.jsonl")
    except InputError:
        pass


def page_of_a_run(drawn: tuple[str, str], folder: Path) -> None:
    """The config, an evaluation or a line of the metrics of a run, as a report."""
    name, text = drawn
    workdir = copy_of(reported(), folder / "run")
    (workdir / name).write_text(text, errors="surrogatepass")
    try:
        runs = read_runs([workdir])
        summary(runs)
        encoded(html_page(runs))
    except InputError:
        pass


def checkpoint_file(drawn: tuple[int, bytes], folder: Path) -> None:
    """A file of a checkpoint: damage is detected, or the arrays are the saved ones."""
    number, content = drawn
    step = copy_of(saved(), folder / "step")
    path = sorted(p for p in step.rglob("*") if p.is_file())[
        number % checkpoint_files()
    ]
    path.write_bytes(content)
    try:
        checkpoint.read_config(step)
    except checkpoint.Damaged:
        pass
    template = {"a": jax.ShapeDtypeStruct((4, 4), "float32", sharding=one_device())}
    try:
        found = checkpoint.read_state(step, template)
        assert (np.asarray(found["a"]) == np.arange(16.0).reshape(4, 4)).all()
    except (checkpoint.Damaged, InputError):
        pass


# Intact originals.


@functools.cache
def scratch() -> Path:
    import atexit
    import tempfile

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def copy_of(tree: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return shutil.copytree(tree, to)


@functools.cache
def digits_text() -> str:
    return to_json(load_config(f"{ROOT}/configs/polyview_digits.py"))


FILE = "train-00000.array_record"


@functools.cache
def data_set() -> Path:
    labels = ({"image": np.zeros((2, 2, 1), np.uint8), "label": n} for n in range(5))
    records.write(
        scratch() / "set",
        {"train": labels},
        version="1",
        targets={"label": {"kind": "class", "classes": 5, "names": list("abcde")}},
        source="here",
        licence="none",
    )
    return scratch() / "set"


def steps(count: int = 40):
    rng = np.random.default_rng(0)
    for number in range(count):
        frame = np.full((84, 84), rng.integers(1, 255), np.uint8)
        yield recording.Step(frame, number % 6, 0.0, False, number == 0)


@functools.cache
def play() -> Path:
    about = {"game": "pong", "actions": list("abcdef")}
    recording.write(
        scratch() / "play", steps(), 40, source="", licence="", provenance=about
    )
    return scratch() / "play"


EVALUATION = {
    "protocol": {"seed": 0, "knn": {"k": 20}},
    "knn": {"top1": 0.25},
    "linear_probe": {
        "top1": 0.5,
        "chosen": {"learning_rate": 0.1, "weight_decay": 0.0},
        "sweep": {
            "learning_rate": [0.1],
            "weight_decay": [0.0],
            "validation_top1": [[0.5]],
        },
        "classes": ["a", "b"],
        "confusion": [[2, 2], [1, 1]],
        "warning": "it lies at the end",
    },
    "health": {"h": {"rankme": 3.25, "standard_deviation": 0.9}},
    "variables": {"x": {"r2": 0.5, "accuracy": 0.5, "f1": 0.5}},
    "subsets": {"y": [{"looks": ["k"], "top1": 0.5}]},
    "retrieval": {"k -> l": {"from": "k", "to": "l", "recall@1": 0.5}},
    "looks": ["k", "l"],
    "machine": {"processor": "x"},
    "note": "it is small",
}
LOGGED = {"step": 20, "loss": 0.5, "image/rankme": 2.0, "time": {"seconds": 1.0}}


@functools.cache
def reported() -> Path:
    workdir = scratch() / "reported"
    (workdir / "eval").mkdir(parents=True)
    (workdir / "config.json").write_text(digits_text())
    (workdir / "eval" / "20.json").write_text(json.dumps(EVALUATION))
    frames = {"frame": np.zeros((1, 4, 4), np.uint8)}
    read = {name: np.zeros((1, 1)) for name in ("value", "reading")}
    np.savez(workdir / "eval" / "20.npz", h=np.eye(4), **frames, **read)
    (workdir / "metrics.jsonl").write_text(json.dumps(LOGGED) + "\n")
    return workdir


@st.composite
def file_of_a_run(draw):
    name, tree = draw(
        st.sampled_from(
            [
                ("config.json", json.loads(digits_text())),
                ("eval/20.json", EVALUATION),
                ("metrics.jsonl", LOGGED),
            ]
        )
    )
    return name, draw(altered(tree)) + "\n"


@functools.cache
def exported() -> Path:
    found = recording.read(play().name, data_dir=play().parent)
    dqn_replay.export(found, scratch() / "replay")
    return scratch() / "replay"


@functools.cache
def picture(kind: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


@functools.cache
def tar_of_tars() -> bytes:
    inner, outer = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        add(archive, "n00000001_1.JPEG", picture("JPEG"))
    with tarfile.open(fileobj=outer, mode="w") as archive:
        add(archive, "n00000001.tar", inner.getvalue())
    return outer.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@functools.cache
def nifti() -> bytes:
    import nibabel

    values = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    return nibabel.Nifti1Image(values, np.eye(4)).to_bytes()


@functools.cache
def encoder_of_digits():
    model = shapes_of(from_json(digits_text()), trust=None)
    arrays = encoder_of(model, "image")
    shapes = {name: array.shape for name, array in arrays.items()}
    return model.module.towers["image"].encoder, shapes


@functools.cache
def weights_of_digits() -> bytes:
    from safetensors.numpy import save

    _, shapes = encoder_of_digits()
    return save({name: np.zeros(shape, "float32") for name, shape in shapes.items()})


@functools.cache
def header_of_weights() -> int:
    return 8 + struct.unpack("<Q", weights_of_digits()[:8])[0]


@st.composite
def file_of_weights(draw):
    """Weights with an altered header; any content of the rest is valid."""
    whole, end = weights_of_digits(), header_of_weights()
    return draw(cut(whole[:end])) + draw(st.sampled_from([whole[end:], b""]))


def one_device():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


@functools.cache
def saved() -> Path:
    checkpoints = checkpoint.Checkpoints(scratch() / "checkpoints")
    checkpoints.save(1, {"a": jnp.arange(16.0).reshape(4, 4)}, TEXT)
    checkpoints.close()
    return scratch() / "checkpoints" / "1"


@functools.cache
def a_run() -> Path:
    """A checkpoint of a model of digits, all zeros."""
    config = from_json(digits_text())
    model = shapes_of(config, trust=None)
    zeros = {"params": model.parts.params, "statistics": model.parts.statistics}
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)
    with checkpoint.Checkpoints(scratch() / "run" / "checkpoints") as checkpoints:
        checkpoints.save(4, zeros, digits_text())
    return scratch() / "run" / "checkpoints" / "4"


@functools.cache
def checkpoint_files() -> int:
    return sum(p.is_file() for p in saved().rglob("*"))


@st.composite
def file_of_checkpoint(draw):
    number = draw(st.integers(0, checkpoint_files() - 1))
    path = sorted(p for p in saved().rglob("*") if p.is_file())[number]
    return number, draw(cut(path.read_bytes()) | st.just(BOMB.encode()))


@st.composite
def file_of_replay(draw):
    kind = draw(st.sampled_from(["observation", "action", "reward", "terminal"]))
    content = (exported() / f"$store$_{kind}_ckpt.1.gz").read_bytes()
    if draw(st.booleans()):
        return kind, draw(cut(content)), True
    return kind, draw(cut(gzip.decompress(content)[:128])), False


def keys() -> list[str]:
    return sorted(dotted(json.loads(digits_text())))


VALUE = (
    st.text(max_size=12)
    | st.from_regex(r"[-+(\[{'\"]{0,3}[0-9e.jx]{0,6}[,)\]}'\"]{0,3}", fullmatch=True)
    | st.sampled_from(["(" * 5000, "9" * 5000, "{1}", "b'x'", "1j", "None", "1e999"])
)
FUZZ = {
    "config parser": (
        st.tuples(
            st.deferred(lambda: st.sampled_from(keys())) | st.text(max_size=12),
            VALUE,
            st.text(max_size=12).map("--config.".__add__) | st.text(max_size=12),
            st.text(max_size=12) | VALUE.map("views=".__add__),
        ),
        config_parser,
    ),
    "config of a checkpoint": (
        st.deferred(lambda: altered(json.loads(digits_text()))),
        config_json,
    ),
    "run": (
        st.deferred(lambda: altered({"model": json.loads(digits_text())["model"]})),
        run,
    ),
    "manifest": (
        st.deferred(
            lambda: altered(json.loads((data_set() / "manifest.json").read_text()))
        ),
        manifest,
    ),
    "recorded play": (
        st.deferred(
            lambda: st.tuples(
                altered(json.loads((play() / "manifest.json").read_text())),
                cut((play() / FILE).read_bytes()),
            )
        ),
        recorded_play,
    ),
    "record": (
        cut(pack({"x": np.zeros((2, 2)), "t": "a", "n": 1})) | st.binary(),
        record,
    ),
    "image": (
        st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]).flatmap(
            lambda kind: cut(picture(kind))
        ),
        image,
    ),
    "DQN Replay": (file_of_replay(), dqn_replay_file),
    "tar": (st.deferred(lambda: cut(tar_of_tars())), tar),
    "volume": (st.deferred(lambda: cut(nifti())), volume),
    "weights": (file_of_weights(), weights),
    "metrics": (
        cut(b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
        | st.just(BOMB.encode()),
        history,
    ),
    "report": (st.deferred(file_of_a_run), page_of_a_run),
    "checkpoint": (file_of_checkpoint(), checkpoint_file),
}


SLOW = {
    "checkpoint": 10,
    "recorded play": 100,
    "run": 20,
    "report": 20,
}  # number of examples for slow readers


def fuzz(name: str, examples: int, folder: Path, seed: int | None = None) -> int:
    """Test a reader on drawn examples; return their number, raise unexpected errors."""
    import hypothesis

    strategy, reader = FUZZ[name]
    inputs = 0

    def once(drawn):
        nonlocal inputs
        inputs += 1
        reader(drawn, folder)

    how = settings(
        max_examples=examples,
        deadline=SOON,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
    )
    run = how(given(strategy)(once))
    (run if seed is None else hypothesis.seed(seed)(run))()
    return inputs


@pytest.mark.parametrize("name", FUZZ)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_reader_reads_or_refuses_any_input(name, tmp_path):
    fuzz(name, SLOW.get(name, 25), tmp_path)


class Owned:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_are_never_loaded(tmp_path):
    """Not as a file of a checkpoint, as a record or as an evaluation's arrays."""
    content = pickle.dumps(Owned(tmp_path / "owned"))
    for path in saved().rglob("*"):
        if path.is_file():
            checkpoint_file_is(path.relative_to(saved()), content, tmp_path)
    with pytest.raises(CorruptRecord):
        unpack(content)
    workdir = tmp_path / "run"
    (workdir / "eval").mkdir(parents=True)
    (workdir / "config.json").write_text(digits_text())
    (workdir / "eval" / "1.json").write_text("{}")
    np.savez(workdir / "eval" / "1.npz", a=np.array([Owned(tmp_path / "owned")]))
    with pytest.raises(InputError, match="is damaged"):
        read_runs([workdir])
    assert not (tmp_path / "owned").exists()


def checkpoint_file_is(path: Path, content: bytes, tmp_path: Path) -> None:
    number = sorted(p for p in saved().rglob("*") if p.is_file()).index(saved() / path)
    checkpoint_file((number, content), tmp_path)


def test_replay_executes_no_target_of_an_untrusted_config(tmp_path):
    config = json.loads(digits_text())
    config["source"] = {"target": "os:mkdir", "path": str(tmp_path / "owned")}
    (tmp_path / "dump" / "3").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="'os:mkdir'.* --trust os"):
        replay_run(Trainer, tmp_path)
    assert not (tmp_path / "owned").exists()
    check_trusted(config, allow_list(("os", "posix")))


def test_a_model_out_of_range_is_refused_before_it_is_built():
    spec = {"partial": "polyview.nn.vit:ViT", "depth": 10**9, "width": 8, "heads": 2}
    make = model_of(from_json(json.dumps({"model": spec})))
    with pytest.raises(InputError, match="depth=1000000000: it must be 1000 or less"):
        abstract_module(make)


def test_a_config_above_the_size_limit_is_damage(tmp_path, monkeypatch):
    step = copy_of(saved(), tmp_path / "step")
    assert checkpoint.read_config(step).model.target == "polyview.nn:Nothing"
    monkeypatch.setattr(checkpoint, "LONGEST_JSON", 30)
    with pytest.raises(checkpoint.Damaged, match="longer than 30 bytes"):
        checkpoint.read_config(step)


@pytest.mark.parametrize(
    "spelling",
    [
        {"pythonClassName": "untrusted.Feature", "featuresDict": {"features": {}}},
        {"python_class_name": "untrusted.Feature", "featuresDict": {"features": {}}},
        {"type": "untrusted.Feature", "content": {}},
    ],
)
def test_a_tfds_folder_cannot_import_a_module(tmp_path, monkeypatch, spelling):
    (tmp_path / "untrusted.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    version = tmp_path / "set" / "1.0.0"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text('{"name": "set", "version": "1.0.0"}')
    (version / "features.json").write_text(json.dumps(spelling))
    with pytest.raises(InputError, match="'untrusted.Feature', a feature outside TFDS"):
        Tfds("set", data_dir=tmp_path)
    (version / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="do not fit together .*set/1.0.0"):
        Tfds("set", data_dir=tmp_path)


def test_postscript_is_not_executed_as_an_image(tmp_path, monkeypatch):
    """PostScript, whatever the file's name, would be passed to its interpreter."""
    tool = tmp_path / "gs"
    tool.write_text(f"#!/bin/sh\ntouch {tmp_path}/owned\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(CorruptRecord):
        decode.decode(page)
    assert not (tmp_path / "owned").exists()


def test_a_folder_with_loops_pipes_and_devices_does_not_hang(tmp_path):
    for number in range(500):
        (tmp_path / f"{number:03d}.png").write_bytes(b"no image")
    (tmp_path / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "d.png")
    with (tmp_path / "e.png").open("wb") as file:
        file.truncate(2**40)
    images = Folder(tmp_path)
    assert len(images) == 501
    assert images.left_out == {
        ".png (a broken link)": 2,
        ".png (not a regular file)": 2,
        "folders linked once more": 1,
    }
    with pytest.raises(CorruptRecord, match=r"e\.png"):
        images[images.files.index("e.png")]


def test_a_file_name_that_is_not_utf_8_is_named(tmp_path):
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))).write_bytes(b"")
    with pytest.raises(InputError, match="udcff.png' in .* is not UTF-8"):
        Folder(tmp_path)


def test_names_in_archives_and_manifests_cannot_leave_their_folder(tmp_path):
    """Names in a tar, and in the manifest of a data set."""
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w") as archive:
        add(archive, "../../n00000001.tar", b"")
    (tmp_path / "x.tar").write_bytes(outer.getvalue())
    with pytest.raises(InputError, match="holds '../../n00000001.tar'"):
        imagenet2012._train_members(tmp_path / "x.tar")
    directory = copy_of(data_set(), tmp_path / "set")
    text = (directory / "manifest.json").read_text()
    for name in ("../set/" + FILE, "..", "", f"{directory}/{FILE}", ".hidden"):
        changed = text.replace(f'"{FILE}"', json.dumps(name))
        (directory / "manifest.json").write_text(changed)
        with pytest.raises(InputError, match="not a plain file name"):
            ArrayRecord("set", data_dir=tmp_path)


def test_oversized_compressed_content_is_not_decompressed(tmp_path, monkeypatch):
    """A wheel, a column of DQN Replay, frames of a recording."""
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(2**20))
    monkeypatch.setattr(fetch, "MAX_MEMBERS", 2**19)
    with pytest.raises(fetch.Failed, match="would expand to 1048576 bytes"):
        fetch.members(tmp_path / "x.whl", ["a"])

    directory = copy_of(exported(), tmp_path / "replay")
    path = directory / "$store$_action_ckpt.1.gz"
    head = gzip.decompress(path.read_bytes())[:128]
    path.write_bytes(gzip.compress(head + bytes(2**26), 9))
    (files,) = dqn_replay.find(directory)
    peak = peak_bytes(lambda: dqn_replay.Checkpoint(files, actions=6))
    assert peak < 2**24
    compressed = zlib.compress(bytes(2**26))
    assert peak_bytes(lambda: recording._array(compressed, (4, 84, 84))) < 2**24


def peak_bytes(refused) -> int:
    """Peak memory while an input is read and refused."""
    tracemalloc.start()
    with pytest.raises((InputError, ValueError)):
        refused()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_a_huge_volume_is_refused_by_its_header(tmp_path):
    content = bytearray(nifti())
    content[40:56] = struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)
    (tmp_path / "x.nii").write_bytes(content)
    with pytest.raises(InputError, match="has shape .*32767"):
        brats._read(tmp_path / "x.nii")


def test_a_page_escapes_untrusted_text(tmp_path):
    config = json.loads(digits_text())
    config["objective"]["loss"]["partial"] = "x:<script>alert(1)</script>"
    config["source"]["name"] = "<img src=x onerror=alert(1)>"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "<script>": 0.5}\n')
    page = html_page(read_runs([tmp_path]))
    assert "<script>" not in page and "<img src=x" not in page
