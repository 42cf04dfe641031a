"""Four MRI sequences of one synthetic brain with synthetic lesions: a PHANTOM.

Nothing here was measured in a patient. There is ONE anatomy, a template averaged over
152 people and deformed at random; lesions are random blobs; signals are equations. It
serves to exercise code and to compare methods when sequences may be missing. It
supports NO medical claim, and a Dice score here does not predict one on BraTS.

The template is the maps of grey and white matter of MNI152 (ICBM 2009a, nonlinear,
symmetric) in nilearn 0.14.1 (BSD): its wheel in `--manual_dir`, an installed nilearn,
or the wheel from pip. A record is an axial slice of 1 mm: a random plane, rotated,
scaled and deformed by a smooth field. Brain that is neither grey nor white matter is
cerebrospinal fluid. A voxel's signal is the sum over its tissues of

    PD (1 - exp(-TR / T1)) exp(-TE / T2)                              spin echo
    PD (1 - 2 exp(-TI / T1) + exp(-TR / T1)) exp(-TE / T2)            inversion recovery

(Bernstein, King and Zhou 2004, chapter 14, for TE << TR), averaged over 2x2 to pixels
of 2 mm, with a smooth bias field and Rician noise. In t1 the lesion is about as dark as
grey matter; in t2 and flair oedema is bright. The enhancing rim differs from the core
only in contrast agent, so only t1ce shows it. Records, labels and regions are those of
`polyview.data.prepare.brats`.
"""

import gzip
import hashlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import nibabel
import numpy as np

from polyview.data.prepare import fetch, records
from polyview.data.prepare.brats import NAMES, TARGETS, halve, halve_labels
from polyview.errors import InputError

VERSION = "0.14.1"
WHEEL = f"nilearn-{VERSION}-py3-none-any.whl"
_FOLDER = "nilearn/datasets/data"
FILES = {
    "t1": "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "gm": "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz",
    "wm": "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz",
}
SHA256 = {
    "t1": "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
    "gm": "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
    "wm": "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
}
COUNTS = {"train": 600, "validation": 100, "test": 200}
GRID = 192  # mm and pixels before averaging; the brain of the template is 181 mm long


class Tissue(NamedTuple):
    """Relaxation times at 3 T in ms, and proton density relative to water."""

    t1: float
    t2: float
    density: float


# Grey and white matter: Wansapura et al. 1999. T1 of the fluid: Lu et al. 2005, its T2:
# Piechnik et al. 2009. Densities: BrainWeb (Kwan et al. 1999). Values of the lesion are
# ours, of the usual order.
TISSUES = {
    "csf": Tissue(3817, 503, 1.00),
    "gm": Tissue(1331, 110, 0.86),
    "wm": Tissue(832, 79, 0.77),
    "core": Tissue(1800, 190, 0.93),
    "oedema": Tissue(1450, 170, 0.88),
    "enhancing": Tissue(1800, 190, 0.93),
}
# Contrast agent in the rim adds this to 1 / T1, in 1 / ms: 0.5 mM at 4 / (mM s), ours.
_AGENT = 0.002


class Sequence(NamedTuple):
    """Repetition, echo and inversion times of a sequence, in ms."""

    tr: float
    te: float
    inversion: float | None = None


# Ours, of the usual order at 3 T. The inversion time of flair nulls the fluid.
_CSF_NULL = TISSUES["csf"].t1 * np.log(2 / (1 + np.exp(-9000 / TISSUES["csf"].t1)))
SEQUENCES = {
    "t1": Sequence(600, 10),
    "t1ce": Sequence(600, 10),
    "t2": Sequence(5000, 100),
    "flair": Sequence(9000, 120, _CSF_NULL),
}


class Maps(NamedTuple):
    """The template: shares of 1 mm voxels, float32[right, anterior, superior]."""

    gm: np.ndarray
    wm: np.ndarray
    brain: np.ndarray


def prepare(directory: Path, manual_dir: Path | None) -> None:
    """Write train (600), validation (100) and test (200), all of one anatomy.

    A record holds t1, t1ce, t2 and flair, float16[96, 96, 1], anterior up, with mean 0
    and standard deviation 1 in the brain and 0 outside; mask uint8[96, 96]; slice int,
    the plane of the template. One in ten has no lesion. A record depends only on its
    split, its number and the versions of NumPy and OpenCV, which the manifest names.

    Raises:
      InputError: no way to get the template works; the message lists those tried.
    """
    maps = read_maps(manual_dir)
    records.write(
        directory,
        {
            split: _examples(maps, number, count)
            for number, (split, count) in enumerate(COUNTS.items())
        },
        version="1.0.0",
        targets=TARGETS,
        source="PHANTOM: random lesions and simulated signals in the one anatomy of "
        "MNI152 (nilearn 0.14.1). Supports no medical claim",
        licence="BSD 3-Clause (nilearn); MNI152 copyright McGill University",
        provenance={
            "sha256": {FILES[name]: digest for name, digest in SHA256.items()},
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
    )


def _examples(maps: Maps, split: int, count: int) -> Iterator[dict]:
    for number in range(count):
        key = np.array([split, number], np.uint64)
        yield phantom(maps, np.random.Generator(np.random.Philox(key=key)))


def phantom(maps: Maps, rng: np.random.Generator) -> dict:
    """Make one record. All numbers are ours."""
    area = maps.brain.sum((0, 1))
    z = int(rng.choice(np.flatnonzero(area > area.max() / 2)))
    gm, wm, brain = _bend([m[:, :, z] for m in maps], _centre(maps.brain), rng)
    csf = np.maximum(brain - gm - wm, 0)
    labels = np.zeros((GRID, GRID), np.uint8)
    if rng.random() < 0.9:
        labels = lesion(wm, (brain > 0.5) & (csf < 0.5), rng)

    # Each voxel's shares: the lesion, with soft edges, then healthy tissue.
    shares = {
        name: cv2.GaussianBlur((labels == NAMES.index(name)).astype(np.float32), *_SOFT)
        for name in NAMES[1:]
    }
    healthy = 1 - sum(shares.values())
    shares |= {"csf": csf * healthy, "gm": gm * healthy, "wm": wm * healthy}
    tissues = {
        name: _someones(tissue, 0.1 if name in NAMES else 0.05, rng)
        for name, tissue in TISSUES.items()
    }
    tissues["enhancing"] = tissues["core"]

    inside = halve(brain) >= 0.5
    example = {"slice": z, "mask": halve_labels(labels) * inside}
    for name, sequence in SEQUENCES.items():
        image = sum(
            share * signal(tissues[tissue], sequence, agent=_agent(name, tissue))
            for tissue, share in shares.items()
        )
        example[name] = _scan(halve(image), inside, rng)
    return example


_SOFT = ((0, 0), 1.2)  # arguments of cv2.GaussianBlur: standard deviation in mm


def _agent(sequence: str, tissue: str) -> float:
    return _AGENT if (sequence, tissue) == ("t1ce", "enhancing") else 0.0


def signal(tissue: Tissue, sequence: Sequence, agent: float = 0.0) -> float:
    """Apply the equations above; `agent` adds to 1 / T1. Negative before the null."""
    rate = 1 / tissue.t1 + agent
    recovered = 1 - np.exp(-sequence.tr * rate)
    if sequence.inversion is not None:
        recovered = (
            1 - 2 * np.exp(-sequence.inversion * rate) + np.exp(-sequence.tr * rate)
        )
    return tissue.density * recovered * np.exp(-sequence.te / tissue.t2)


def lesion(wm: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw nested blobs in a slice of 1 mm: labels of BraTS 2023, uint8[h, w].

    Core and rim (1 and 3) fill an uneven ellipse; oedema (2) spreads around it in white
    matter. The rim has gaps; one in five lesions has no rim. The lesion stays inside
    `where`, and its centre is in white matter.
    """
    white = np.argwhere((wm >= min(0.5, wm.max())) & where)
    if not len(white):
        return np.zeros(where.shape, np.uint8)
    y, x = white[rng.integers(len(white))]
    angle, squeeze, radius = rng.uniform((0, 0.65, 7), (np.pi, 1, 16))
    rows, columns = np.indices(where.shape)
    across = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    along = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    distance = np.hypot(across / squeeze, along)

    uneven = distance * np.exp(0.2 * _smooth(rng, 8, where.shape))
    thickness = rng.uniform(2.5, 5) * np.exp(0.3 * _smooth(rng, 6, where.shape))
    thickness = np.minimum(thickness, radius / 2)  # every rim has a core
    whole = _smooth(rng, 8, where.shape) > (-0.9 if rng.random() < 0.8 else np.inf)
    fingers = distance * np.exp(0.3 * _smooth(rng, 7, where.shape))
    reach = radius + rng.uniform(4, 16)

    core = where & (uneven < radius)
    rim = core & whole & (uneven > radius - thickness)
    oedema = where & ~core & (fingers < reach) & ((wm > 0.3) | (uneven < radius + 2))
    return (1 * core + 2 * rim + 2 * oedema).astype(np.uint8)


def _bend(
    planes: list[np.ndarray], centre: list[float], rng: np.random.Generator
) -> list[np.ndarray]:
    """Rotate, scale and deform planes [right, anterior] as in a random subject, into
    [GRID, GRID] with rows from anterior and columns from left."""
    angle = rng.uniform(-0.1, 0.1)
    scale = 1 / rng.uniform(0.88, 1, 2)
    rows, columns = np.indices((GRID, GRID), np.float32) - (GRID - 1) / 2
    right = scale[0] * (columns * np.cos(angle) - rows * np.sin(angle)) + centre[0]
    anterior = centre[1] - scale[1] * (columns * np.sin(angle) + rows * np.cos(angle))
    # Standard deviation 2.5 mm, smooth over 15: a slope of 0.12, so nothing folds.
    right += 2.5 * _smooth(rng, 15, right.shape)
    anterior += 2.5 * _smooth(rng, 15, right.shape)
    place = anterior.astype(np.float32), right.astype(np.float32)
    return [cv2.remap(plane, *place, cv2.INTER_LINEAR) for plane in planes]


def _centre(brain: np.ndarray) -> list[float]:
    """Return the centre of the brain in the volume, (right, anterior)."""
    spans = [np.flatnonzero(brain.any(others)) for others in ((1, 2), (0, 2))]
    return [(span[0] + span[-1]) / 2 for span in spans]


def _someones(tissue: Tissue, spread: float, rng: np.random.Generator) -> Tissue:
    """Draw one subject's tissue: the common values with log-normal spread."""
    return Tissue(*(np.array(tissue) * np.exp(spread * rng.standard_normal(3))))


def _scan(
    image: np.ndarray, inside: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Apply bias field, Rician noise and the scale of a record: float16[h, w, 1]."""
    image = image * np.exp(0.12 * _smooth(rng, 20, image.shape))
    noise = rng.uniform(0.02, 0.04) * np.abs(image[inside]).mean()
    real, imaginary = noise * rng.standard_normal((2, *image.shape))
    image = np.hypot(image + real, imaginary)
    image = (image - image[inside].mean()) / image[inside].std()
    return np.where(inside, image, 0).astype(np.float16)[..., None]


def _smooth(
    rng: np.random.Generator, deviation: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Draw a random field, smooth over `deviation` pixels, standardised."""
    field = cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), deviation)
    return (field - field.mean()) / field.std()


def read_maps(manual_dir: Path | None) -> Maps:
    """Read the template from the first wheel or folder that has it."""
    reasons = []
    ways: list[Callable[[Path | None], dict[str, bytes]]] = [
        _given,
        _installed,
        _downloaded,
    ]
    for way in ways:
        try:
            contents = way(manual_dir)
            for name, digest in SHA256.items():
                found = hashlib.sha256(contents[name]).hexdigest()
                if found != digest:
                    raise fetch.Failed(f"{FILES[name]} has another sha256 ({found})")
            break
        except fetch.Failed as reason:
            reasons.append(f"{way.__name__.strip('_')}: {reason}")
    else:
        raise InputError(f"no MNI152 template: {'; '.join(reasons)}")
    t1, gm, wm = (
        np.asarray(
            nibabel.Nifti1Image.from_bytes(gzip.decompress(contents[name])).dataobj
        )
        for name in FILES
    )
    brain = t1 > 0  # only the outline of the T1 image is used
    gm, wm = ((m * brain / 255).astype(np.float32) for m in (gm, wm))
    return Maps(gm, wm, brain.astype(np.float32))


def _given(manual_dir: Path | None) -> dict[str, bytes]:
    if manual_dir is None:
        raise fetch.Failed("no --manual_dir")
    return _unzip(manual_dir / WHEEL)


def _installed(_: Path | None) -> dict[str, bytes]:
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise fetch.Failed("no nilearn")
    root = Path(spec.origin).parent.parent / _FOLDER
    try:
        return {name: (root / file).read_bytes() for name, file in FILES.items()}
    except OSError as error:
        raise fetch.Failed(str(error)) from None


def _downloaded(_: Path | None) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        return _unzip(fetch.wheel("nilearn", VERSION, Path(scratch)))


def _unzip(wheel: Path) -> dict[str, bytes]:
    contents = fetch.members(wheel, (f"{_FOLDER}/{file}" for file in FILES.values()))
    return dict(zip(FILES, contents, strict=True))
