"""Initialisation of a new state from other runs by path; the rest is reported."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_weights import adopted, made, same, state_of, vit, written

from polyview.config.text import from_json, to_json
from polyview.errors import InputError
from polyview.runs import init
from polyview.runs.evaluating import Asked, evaluate
from polyview.runs.exporting import in_float32
from polyview.runs.init import Entry, entries_of, lay_over
from polyview.runs.load import encoder_of, load, with_arrays
from polyview.runs.positions import resized
from polyview.runs.weights import keep_fixed, read_fixed
from polyview.training.train import train
from polyview.training.trainer import Trainer


@pytest.fixture(scope="module")
def donor(digits_run):
    """A trained run on digits, with a moving average."""
    return digits_run(target_decay=0.5)


def with_init(config, init):
    """The config with `init`, as if read from a file."""
    return from_json(to_json(config.to_dict() | {"init": init}))


def begun(config, tmp_path):
    """The trainer of a config and its state before the first step."""
    trainer = Trainer(config)
    with jax.set_mesh(trainer.mesh):
        trainer.check(tmp_path)
        return trainer, trainer.create(tmp_path)


def test_a_whole_run_initialises_the_state_and_its_average(donor, digits, tmp_path):
    config = with_init(digits("views=2", target_decay=0.9, seed=5), str(donor))
    trainer, state = begun(config, tmp_path)
    theirs = load(donor).parts
    jax.tree.map(np.testing.assert_array_equal, state.params, theirs.params)
    jax.tree.map(np.testing.assert_array_equal, state.statistics, theirs.statistics)
    jax.tree.map(np.testing.assert_array_equal, state.target["params"], theirs.params)
    assert trainer.laid_over.fresh == []
    assert "begins with" in trainer.banner(state, 0)


def test_a_path_is_copied_from_a_path_and_the_rest_is_fresh(donor, digits, tmp_path):
    """Two towers start with one encoder, but with fresh projectors."""
    plain = digits("views=2").to_dict()
    tower = plain["model"]["towers"]["image"]
    plain["model"]["towers"] = {"image": tower, "twin": tower}
    plain["views"]["target"] = "test_init:Twins"
    paths = "towers.image.encoder", "towers.twin.encoder"
    config = with_init(
        from_json(to_json(plain)), {p: (str(donor), paths[0]) for p in paths}
    )
    trainer, state = begun(config, tmp_path)
    theirs = load(donor).parts.params["towers"]["image"]
    for name in ("image", "twin"):
        ours = state.params["towers"][name]
        jax.tree.map(np.testing.assert_array_equal, ours["encoder"], theirs["encoder"])
        kernels = zip(
            jax.tree.leaves(ours["projector"]),
            jax.tree.leaves(theirs["projector"]),
            strict=True,
        )
        assert any((np.asarray(a) != np.asarray(b)).any() for a, b in kernels)
    report = trainer.banner(state, 0)["begins with"]
    assert "fresh: towers.image.projector, towers.twin.projector" in report


def Twins(**options):
    """The views of an image under two names."""
    from polyview.data.views import Generated

    views = Generated(**options)

    def both(example, rng):
        example_views = views(example, rng)
        for part in ("views", "present"):
            example_views[part]["twin"] = example_views[part]["image"]
        return example_views

    return both


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ({"towers.image.encodr": "RUN"}, "this model has nothing at 'towers.image.enc"),
        ({"towers.image.encoder": ("RUN", "nowhere")}, "has nothing at 'nowhere'"),
        ({"": ("RUN", "towers")}, "have no place at 'the model'"),
        ({"towers.image.encoder": "nowhere"}, "nowhere has no checkpoint to load"),
        ({"towers.image.encoder": 3}, r"is 3; give a run or \(run, path in it\)"),
        ({"towers.image.encoder": {"from": "RUN", "als": "x"}}, "give a run or"),
        ({"towers.image.encoder": {"from": "RUN", "leave": "*"}}, "the pattern lists"),
        ({"towers.image.encoder": {"from": "RUN", "fresh": [3]}}, "the pattern lists"),
        ({"towers.image.encoder": {"from": "RUN", "path": 3}}, "give a run or"),
        ({"": "RUN", "towers.image.encoder": ("RUN", "nope")}, "has nothing at 'nope'"),
        ({"towers.image.encoder": "sha256:00"}, "does not exist or has another sha256"),
    ],
)
def test_an_invalid_init_is_refused_in_one_line(donor, digits, tmp_path, init, words):
    def named(value):
        if isinstance(value, str):
            return value.replace("RUN", str(donor))
        if isinstance(value, dict):
            return {key: named(part) for key, part in value.items()}
        return tuple(map(named, value)) if isinstance(value, tuple) else value

    config = with_init(digits("views=2"), named(init))
    with pytest.raises(InputError, match=words) as caught:
        begun(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_unused_arrays_are_an_error_unless_allowed(tmp_path):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaf = jax.ShapeDtypeStruct((2,), np.float32, sharding=one)
    parts = {"a": {"w": leaf, "sigma": leaf}}, {}, {}
    file, ones = tmp_path / "x.safetensors", np.ones(2, np.float32)
    save_file({"b.w": ones, "b.sigma": 2 * ones, "b.more": ones, "c": ones}, file)

    def laid(**options):
        return lay_over([Entry("a", str(file), "b", **options)], None, parts)

    with pytest.raises(InputError, match="1 arrays of .* as 'b.more'.*`leave`"):
        laid()
    allowed = laid(leave=("b.more",), fresh=("*.sigma",))
    np.testing.assert_array_equal(allowed.parts[0]["a"]["w"], ones)
    assert allowed.parts[0]["a"]["sigma"] is leaf
    assert allowed.fresh == ["a.sigma"]


def test_positions_of_a_run_are_resized_and_kept_with_the_new_run(digits, tmp_path):
    """A frozen encoder with resized positions is no longer the donor's file."""
    small = vit(digits("views=2"))
    donor = written(small, tmp_path / "donor")
    large = vit(digits("views=2"), image=12)
    large.model.towers.image.frozen = True
    at = "towers.image.encoder"
    model = made(to_json(large))
    kept = {n.removeprefix(f"{at}."): a for n, a in load(donor).arrays.items()}
    file = tmp_path / "ours.safetensors"
    names = {f"net.{n}": np.asarray(a) for n, a in kept.items() if "project" not in n}
    save_file(names, file)
    for source in (donor, file):
        laid = lay_over([Entry(at, str(source), at)], model.module, model.parts[1:])
        assert "positions 2 x 2 -> 3 x 3, bicubic" in f"{laid}"
        found = laid.parts[2]["towers"]["image"]["encoder"]["position"]
        expected = resized(np.asarray(kept["position"]), 10, 1)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert laid.referenced == []
    # At the same size the file is named by its digest, with the prefix of its names.
    small.model.towers.image.frozen = True
    model = made(to_json(small))
    laid = lay_over([Entry(at, str(file), at)], model.module, model.parts[1:])
    assert [entry["from"] for entry in laid.referenced] == ["net"]
    record = keep_fixed(tmp_path / "run", laid.parts[2], laid.referenced, "a file")
    again = read_fixed(tmp_path / "run", record, model.parts.fixed, [file])
    jax.tree.map(np.testing.assert_array_equal, again, laid.parts[2])


@pytest.mark.parametrize("layout", ["run", "safetensors", "timm", "torchvision"])
def test_a_class_token_on_one_side_only_is_named(digits, tmp_path, layout):
    """If it is left out on request, so is its position."""
    at, arrays = "towers.image.encoder", {}
    with_token, without = (vit(digits("views=2"), pool=p) for p in ("cls", "mean"))
    for ours, theirs, why in (
        (with_token, without, "no class token.*pool='mean'.*`fresh`"),
        (without, with_token, "a class token.*has none.*pool='cls'.*--leave"),
    ):
        source = tmp_path / theirs.model.towers.image.encoder.pool
        if layout == "run":
            arrays = dict(encoder_of(load(written(theirs, source)), "image"))
        else:
            arrays, state = state_of(theirs, layout)
            save_file({f"net.{name}": array for name, array in state.items()}, source)
        with pytest.raises(InputError, match=f"does not fit the config: it has {why}"):
            adopted(ours, source, at)
    laid, found = adopted(without, source, at, leave=("*cls*", "*class_token"))
    assert "left out: the position of the class token" in str(laid)
    del arrays["cls"]
    same(arrays | {"position": arrays["position"][:, 1:]}, found)


def test_a_run_that_is_not_finite_is_refused_as_donor(donor, digits, monkeypatch):
    """By the array's name, in the first of its many numbers that is not."""
    name = "towers.image.encoder.conv.kernel"
    broken = load(donor)
    kernel = broken.arrays[name].at[0, 0, 0, 1].set(np.nan)
    monkeypatch.setattr(
        init, "load", lambda *_, **__: with_arrays(broken, {name: kernel})
    )
    model = made(to_json(digits("views=2")))
    entry = Entry("towers.image.encoder", str(donor), "towers.image.encoder")
    with pytest.raises(InputError, match=f"{name} of .* is not finite: 1 of"):
        lay_over([entry], model.module, model.parts[1:])


def test_an_array_of_a_library_may_start_fresh(digits, tmp_path):
    config, file = digits("views=2"), tmp_path / "x.safetensors"
    ours, theirs = state_of(config, "timm")
    kernel = theirs.pop("conv1.weight")
    at = "towers.image.encoder"
    for given in (theirs, theirs | {"conv1.weight": kernel}):
        save_file({f"net.{name}": array for name, array in given.items()}, file)
        laid, arrays = adopted(config, file, fresh=(f"{at}.conv.kernel",))
        assert arrays.keys() == ours.keys() - {"conv.kernel"}
        assert f"{at}.conv.kernel" in laid.fresh


def test_init_from_means_the_encoder_of_each_tower(digits):
    config = digits("views=2", init_from="runs/a")
    path = "towers.image.encoder"
    assert entries_of(config) == [Entry(path, "runs/a", path)]
    both = with_init(config, {"": "runs/b"})
    with pytest.raises(InputError, match="both set"):
        entries_of(both)


def test_later_overlapping_entries_win_and_are_recorded(tmp_path):
    """Arrays from one file are stored by reference; all others are copied."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaf = jax.ShapeDtypeStruct((2,), np.float32, sharding=one)
    fixed = {"body": {"a": {"w": leaf}, "b": {"w": leaf}}}
    files = [tmp_path / f"{number}.safetensors" for number in (1, 2)]
    for number, file in enumerate(files, 1):
        save_file({f"{x}.w": np.full(2, number, np.float32) for x in "ab"}, file)
    first, second = map(str, files)
    entries = [Entry("body", first, ""), Entry("body.b", second, "b", leave=("a.w",))]
    laid = lay_over(entries, None, ({}, {}, fixed))
    assert [entry["at"] for entry in laid.referenced] == ["body.b"]
    record = keep_fixed(tmp_path / "run", laid.parts[2], laid.referenced, "two files")
    arrays = read_fixed(tmp_path / "run", record, fixed, files)
    for part, value in (("a", 1), ("b", 2)):
        np.testing.assert_array_equal(arrays["body"][part]["w"], np.full(2, value))


def test_a_run_with_init_paths_is_evaluated_and_exported(donor, digits, tmp_path):
    config = with_init(digits("views=2"), {"towers.image.encoder": str(donor)})
    config.evaluations.frozen.probe.update(learning_rates=(0.1,), steps=5)
    train(Trainer(config), tmp_path)
    evaluate(tmp_path, None, Asked())
    assert (tmp_path / "eval" / "4-frozen.json").exists()
    assert in_float32(load(tmp_path), ()).config.model == config.model
