"""Eight virtual CPU devices, strict settings and one small data set for every test."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Many tests train the same small model; what one of them compiled serves the others.
# The processes that pytest starts inherit the folder from the first.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
# Tests compile more than they compute. Those of memory and of the compiled program use
# the fixture `optimized`.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# The older code generator of XLA compiles in two thirds of the time.
os.environ["XLA_FLAGS"] = " ".join(
    [*os.environ.get("XLA_FLAGS", "").split(), "--xla_cpu_use_fusion_emitters=false"]
)

import jax
import numpy as np
import pytest

from polyview.config.file import load_config
from polyview.evaluation import frozen_figures

ROOT = Path(__file__).parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Keep a worker small: programs of one file seldom serve the next."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimized():
    """Compile as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def see_devices(patch, count: int) -> None:
    """Let JAX see so many devices, as long as a patch lasts."""
    some = functools.partial(jax.make_mesh, devices=jax.devices()[:count])
    patch.setattr(jax, "device_count", lambda: count)
    patch.setattr(jax, "make_mesh", some)


@pytest.fixture
def on_devices(monkeypatch):
    """Return a function that makes the rest of a test see so many devices."""
    everywhere = jax.make_mesh

    def see(count: int) -> None:
        monkeypatch.setattr(jax, "make_mesh", everywhere)  # if it is called again
        see_devices(monkeypatch, count)

    return see


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    """Random numbers that are the same in each run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data directory that holds the digits."""
    from polyview import prepare

    folder = tmp_path_factory.mktemp("data")
    prepare.main(["digits", "--data_dir", str(folder)])
    return folder


def _small_digits(argument: str = "", **overrides):
    width = "model.towers.image.encoder.width"
    small = {"steps": 4, "batch_size": 8, "log_every": 1, width: 4} | overrides
    text = {key: str(value) for key, value in small.items()}
    config = load_config(f"{ROOT}/configs/polyview_digits.py:{argument}", text)
    encoder = config.model.towers.image.encoder
    with config.unlocked():
        encoder.update(stages=(1,), widths=(encoder.width,))
    return config


@pytest.fixture
def digits(data_dir, monkeypatch):
    """`digits("views=2", steps=4, ...)` -> the digits config, small, data in place.

    Its maps of features are two of their axes; test_evaluation_report draws with t-SNE.
    """
    monkeypatch.setenv("POLYVIEW_DATA", str(data_dir))
    monkeypatch.setattr(frozen_figures, "_map", lambda h: h[:, :2])
    return _small_digits


@pytest.fixture(scope="session")
def small_digits():
    """`digits`, for fixtures that outlive a test; they set `POLYVIEW_DATA`."""
    return _small_digits


@pytest.fixture(scope="session")
def of_photos():
    """`of_photos(config, folder)` -> a config of digits, for a folder of photos."""

    def changed(config, folder: Path):
        config.source = {
            "target": "polyview.data.sources.folder:Folder",
            "path": str(folder),
        }
        config.views.targets = ()
        config.model.towers.image.encoder.in_channels = 3
        return config

    return changed


@pytest.fixture(scope="session")
def digits_run(data_dir, tmp_path_factory):
    """`digits_run(target_decay=0.5, ...)` -> the folder of a finished run of digits.

    Trained once a worker; only read it, or copy it.
    """

    @functools.cache
    def make(**overrides) -> Path:
        from polyview.training.train import train
        from polyview.training.trainer import Trainer

        workdir = tmp_path_factory.mktemp("donor") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("POLYVIEW_DATA", str(data_dir))
            train(Trainer(_small_digits("views=2", steps=2, **overrides)), workdir)
        return workdir

    return make


@pytest.fixture
def command(data_dir):
    """`command("main", "--config", ...)` -> the finished process of that command line.

    A module of the engine, or one by its whole name, as "sgi.finetune". `devices`
    virtual CPU devices; `wait=False` returns the running process.
    """

    def start(module: str, *arguments, devices: int = 1, wait: bool = True, **settings):
        environment = os.environ | {
            "POLYVIEW_DATA": str(data_dir),
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **{key.upper(): str(value) for key, value in settings.items()},
        }
        name = module if "." in module else f"polyview.{module}"
        process = subprocess.Popen(
            [sys.executable, "-m", name, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if wait:
            process.output, _ = process.communicate(timeout=300)
        return process

    return start
