"""BraTS: axial slices of four MRI sequences and the tumour's mask, from your own copy.

The challenge requires registration, so nothing is downloaded. The folder may be that of
any year since 2018, in any layout (HGG/LGG folders, .nii or .nii.gz), because cases are
recognised by the names of their files:

    NAME_{t1,t1ce,t2,flair,seg}.nii.gz    2018 to 2022, labels 0, 1, 2, 4
    NAME-{t1n,t1c,t2w,t2f,seg}.nii.gz     2023 and later, labels 0, 1, 2, 3

Of every 4th slice we keep those that are 1/20 or more brain. Planes are padded to
BraTS's 240x240 and averaged over 2x2 to 120x120 pixels of 2 mm, as in `mri_phantom`; a
mask takes the commonest label. A slice has 130 kB, a quarter of the full size. Each
sequence has mean 0 and standard deviation 1 over the volume's brain, where any sequence
is not 0. If a case lacks a sequence, its records lack that field: a missing view.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

from polyview.data.prepare import records
from polyview.errors import InputError

SEQUENCES = ("t1", "t1ce", "t2", "flair")
# The labels of 2023, used in the records of every year.
NAMES = ("background", "core", "oedema", "enhancing")
TARGETS = {
    "mask": {
        "kind": "mask",
        "classes": 4,
        "names": list(NAMES),
        # The regions BraTS ranks by: whole tumour, tumour core, enhancing tumour.
        "regions": {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]},
    }
}
SIDE = 240
EVERY = 4
_LEAST_BRAIN = 1 / 20
_SHARES = {"test": 0.2, "validation": 0.1, "train": 0.7}
_NEW = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
_FILE = re.compile(r"(.+)[_-](t1ce|t1c|t1n|t1|t2w|t2f|t2|flair|seg)\.nii(?:\.gz)?")
# File label -> record label. In 2024 label 4 became the resection cavity.
_LABELS_2018 = {0: 0, 1: 1, 2: 2, 4: 3}
_LABELS_2023 = {0: 0, 1: 1, 2: 2, 3: 3}


class Case(NamedTuple):
    """The files of one case and its map from file labels to record labels."""

    name: str
    files: dict[str, Path]  # by sequence, and "seg"
    labels: dict[int, int]


def prepare(directory: Path, folder: Path | None) -> None:
    """Write train, validation and test: about 70, 10 and 20 % of the patients.

    A record holds t1, t1ce, t2 and flair if the case has them, float16[120, 120, 1]
    with anterior up and the patient's left on the left; mask uint8[120, 120], case str,
    patient int and slice int. Patients are sorted by the SHA-256 of the case name
    without the visit (in names since 2023): the first fifth is test, the next tenth
    validation.

    Args:
      directory: the data set's folder, which must not exist.
      folder: holds the cases, at any depth.

    Raises:
      InputError: there is no folder or no case; a case lacks its mask or all sequences;
        a file is damaged, constant, not finite, larger than 240x240 or of another shape
        than the rest of its case; a label is unknown.
    """
    if folder is None:
        raise InputError(
            "brats requires --manual_dir, the folder of the unpacked training data; "
            "register with the challenge (BraTS, on synapse.org) to get them"
        )
    cases = find(folder)
    splits = _split(folder, cases)
    missing = Counter(s for case in cases for s in SEQUENCES if s not in case.files)
    rule = "by patient: first fifth by sha256 of the name test, next tenth validation"
    records.write(
        directory,
        {
            split: (example for case in part for example in slices(case))
            for split, part in splits.items()
        },
        version="1.0.1",
        targets=TARGETS,
        source=f"BraTS, the folder {folder.name} of {len(cases)} cases",
        licence="the terms of the challenge, which were accepted at registration",
        provenance={"split": rule, "every": EVERY, "missing": missing},
    )
    if missing:
        lacking = [case.name for case in cases if len(case.files) <= len(SEQUENCES)]
        counts = ", ".join(f"{name} in {count}" for name, count in missing.items())
        print(
            f"{len(lacking)} of {len(cases)} cases lack a sequence, kept as a missing "
            f"view: {counts} (the first case: {lacking[0]})"
        )


def find(folder: Path) -> list[Case]:
    """Return the cases below a folder, sorted by name; see `prepare` for errors."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.rglob("*.nii*")):
        match = _FILE.fullmatch(path.name)
        # macOS leaves files named "._NAME" beside others.
        if match and path.is_file() and not path.name.startswith("."):
            name, kind = match.groups()
            if kind in found[name]:
                raise InputError(
                    f"{path} duplicates {found[name][kind]}; keep one of them"
                )
            found[name][kind] = path
    if not found:
        raise InputError(
            f"no BraTS case in {folder} (searched for NAME_t1ce.nii.gz, "
            "NAME-t1c.nii.gz and so on at any depth)"
        )
    return [_case(name, files) for name, files in sorted(found.items())]


def _case(name: str, files: dict[str, Path]) -> Case:
    place = next(iter(files.values())).parent
    if "seg" not in files:
        raise InputError(
            f"no {name}_seg or {name}-seg in {place}; move unlabelled cases elsewhere, "
            "or rename the mask (W39_1998.09.19_Segm.nii in case 355 of 2020)"
        )
    kinds = files.keys() - {"seg"}
    if not kinds:
        raise InputError(f"{place} holds the mask of {name} but none of its sequences")
    new = kinds & _NEW.keys()
    if new and new != kinds:
        raise InputError(
            f"{place} mixes the names of 2023 ({sorted(new)[0]}) with older ones "
            f"({sorted(kinds - new)[0]}), so its labels are ambiguous; rename them"
        )
    named = {_NEW.get(kind, kind): path for kind, path in files.items()}
    return Case(name, named, _LABELS_2023 if new else _LABELS_2018)


def _split(folder: Path, cases: Sequence[Case]) -> dict[str, list[Case]]:
    patient = {case.name: patient_of(case.name) for case in cases}
    if (count := len(set(patient.values()))) < 3:
        raise InputError(
            f"{folder} holds {count} patients; three splits require at least 3"
        )
    divided = records.divide(patient, _SHARES)
    by_name = {case.name: case for case in cases}
    return {
        split: [by_name[n] for n in sorted(names)] for split, names in divided.items()
    }


def patient_of(case: str) -> str:
    """Drop the visit: BraTS-GLI-00045-000 and -001 are visits of one patient."""
    return re.sub(r"(BraTS-\w+-\d{5})-\d{3}", r"\1", case)


def slices(case: Case) -> Iterator[dict]:
    """Yield the records of one case."""
    volumes = {kind: _read(path) for kind, path in case.files.items()}
    _check_shapes(case, volumes)
    seg = volumes.pop("seg")
    unknown = sorted(set(np.unique(seg).tolist()) - case.labels.keys())
    if unknown:
        raise InputError(
            f"{case.files['seg']} holds the label {unknown[0]:g}; with such file names "
            f"the labels must be {', '.join(map(str, case.labels))}"
        )
    mask = np.zeros(seg.shape, np.uint8)
    for label, number in case.labels.items():
        mask[seg == label] = number
    brain = np.any([volume != 0 for volume in volumes.values()], 0)
    scales = {
        s: _mean_and_deviation(volume[brain], case.files[s])
        for s, volume in volumes.items()
    }
    for z in range(0, brain.shape[2], EVERY):
        inside = _plane(brain[:, :, z])
        if inside.mean() < _LEAST_BRAIN:
            continue
        # A number by which an objective recognises slices of one patient.
        patient = zlib.crc32(patient_of(case.name).encode()) & 0x7FFFFFFF
        example = {"case": case.name, "patient": patient, "slice": z}
        for s, volume in volumes.items():
            mean, deviation = scales[s]
            image = (_plane(volume[:, :, z]) - mean) / deviation * inside
            example[s] = halve(image).astype(np.float16)[..., None]
        yield example | {"mask": halve_labels(_plane(mask[:, :, z]))}


def halve(image: np.ndarray) -> np.ndarray:
    """Return the mean over 2x2 pixels: [2h, 2w, ...] to [h, w, ...]."""
    height, width, *rest = image.shape
    return image.reshape(height // 2, 2, width // 2, 2, *rest).mean((1, 3))


def halve_labels(mask: np.ndarray) -> np.ndarray:
    """Commonest label of 2x2 pixels, largest if tied: uint8[2h, 2w] to uint8[h, w]."""
    counts = halve(np.eye(len(NAMES), dtype=np.float32)[mask])
    return (len(NAMES) - 1 - counts[..., ::-1].argmax(-1)).astype(np.uint8)


def _read(path: Path) -> np.ndarray:
    """Read a volume as [right, anterior, superior], in whatever order it is stored."""
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        _check_shape(path, image.shape)  # before reading: the header is untrusted
        volume = np.asarray(image.dataobj)
        if volume.dtype.kind not in "iuf":  # such as colours or complex numbers
            raise ValueError(f"its values are {volume.dtype}")
    except Exception as error:  # a damaged file can raise any error in nibabel
        if isinstance(error, InputError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path} cannot be read ({reason}); unpack or download it again"
        ) from None
    if not np.isfinite(volume).all():
        raise InputError(f"{path} holds values that are not finite; download it again")
    return volume


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or max(shape[:2]) > SIDE or shape[2] > 4 * SIDE:
        raise InputError(
            f"{path} has shape {shape}; BraTS's volumes are {SIDE}x{SIDE}x155"
        )


def _check_shapes(case: Case, volumes: Mapping[str, np.ndarray]) -> None:
    common, _ = Counter(v.shape for v in volumes.values()).most_common(1)[0]
    for kind, volume in volumes.items():
        if volume.shape != common:
            raise InputError(
                f"{case.files[kind]} has shape {volume.shape}, others of its case have "
                f"{common}; all files of a case must share one grid"
            )


def _mean_and_deviation(values: np.ndarray, path: Path) -> tuple[float, float]:
    mean, deviation = values.mean(dtype=float), values.std(dtype=float)
    if not deviation > 0:
        raise InputError(
            f"{path} is constant; remove it if the sequence was not acquired"
        )
    return mean, deviation


def _plane(plane: np.ndarray) -> np.ndarray:
    """Turn [right, anterior] into [row, column], anterior up, padded to 240x240."""
    plane = np.rot90(plane)
    gaps = [SIDE - side for side in plane.shape]
    return np.pad(plane, [(gap // 2, gap - gap // 2) for gap in gaps])
