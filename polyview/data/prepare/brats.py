"""BraTS: axial slices of four MRI sequences and the tumour's mask, from your own copy.

The data are given to who registers with the challenge, so nothing is downloaded. The
folder may be that of any year since 2018, unpacked anyhow (HGG/LGG folders, .nii or
.nii.gz), for a case is known by its files:

    NAME_{t1,t1ce,t2,flair,seg}.nii.gz    2018 to 2022, labels 0, 1, 2, 4
    NAME-{t1n,t1c,t2w,t2f,seg}.nii.gz     2023 and later, labels 0, 1, 2, 3

Ours are every 4th slice of those that are brain in 1/20 or more, and pixels of 2 mm:
planes are padded to BraTS's 240x240 and averaged over 2x2 to 120x120, where a pixel of
a mask takes its commonest label. That is the pixel of `mri_phantom`, a quarter of the
bytes, and 130 kB a slice. Each sequence has mean 0 and deviation 1 over the volume's
brain, where any sequence is not 0. A sequence that a case lacks is a field that its
records lack: a missing view.
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
# The labels of 2023, which records have whatever the year.
NAMES = ("background", "core", "oedema", "enhancing")
TARGETS = {
    "mask": {
        "kind": "mask",
        "classes": 4,
        "names": list(NAMES),
        # Whole tumour, tumour core and enhancing tumour, on which BraTS ranks.
        "regions": {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]},
    }
}
SIDE = 240
EVERY = 4
_LEAST_BRAIN = 1 / 20
_SHARES = {"test": 0.2, "validation": 0.1, "train": 0.7}
_NEW = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
_FILE = re.compile(r"(.+)[_-](t1ce|t1c|t1n|t1|t2w|t2f|t2|flair|seg)\.nii(?:\.gz)?")
# A label's number in the records. In 2024 label 4 became the cavity of a resection.
_LABELS_2018 = {0: 0, 1: 1, 2: 2, 4: 3}
_LABELS_2023 = {0: 0, 1: 1, 2: 2, 3: 3}


class Case(NamedTuple):
    name: str
    files: dict[str, Path]  # by sequence, and "seg"
    labels: dict[int, int]


def prepare(directory: Path, folder: Path | None) -> None:
    """Write train, validation and test, about 70, 10 and 20 of 100 patients.

    A record holds t1, t1ce, t2 and flair, float16[120, 120, 1] with anterior up and the
    patient's left on the left, as far as they are there; mask uint8[120, 120], case
    str, patient int and slice int. Patients are sorted by the SHA-256 of the case's
    name (less the visit that names have since 2023); the first fifth is for test, the
    next tenth for validation.

    Args:
      directory: the data set's folder, to be made.
      folder: holds the cases, at any depth.

    Raises:
      InputError: there is no folder or no case; a case lacks its mask or all sequences;
        a file is damaged, constant, not finite, of another shape than its siblings or
        larger than 240x240; a label is unknown.
    """
    if folder is None:
        raise InputError(
            "brats needs --manual_dir, the folder of the unpacked training data; "
            "register with the challenge (BraTS, on synapse.org) to get them"
        )
    cases = find(folder)
    splits = _split(folder, cases)
    missing = Counter(s for case in cases for s in SEQUENCES if s not in case.files)
    rule = "by patient: first fifth by sha256 of the name test, next tenth validation"
    records.write(
        directory,
        {
            split: (example for case in some for example in slices(case))
            for split, some in splits.items()
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
            f"{len(lacking)} of {len(cases)} cases lack a sequence, which is a missing "
            f"view: {counts} (the first: {lacking[0]})"
        )


def find(folder: Path) -> list[Case]:
    """The cases below a folder, by name; each has its mask and at least a sequence."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.rglob("*.nii*")):
        match = _FILE.fullmatch(path.name)
        # "._NAME" is what macOS leaves beside a file.
        if match and path.is_file() and not path.name.startswith("."):
            name, kind = match.groups()
            if kind in found[name]:
                raise InputError(
                    f"{path} is there already as {found[name][kind]}; keep one of them"
                )
            found[name][kind] = path
    if not found:
        raise InputError(
            f"no BraTS case in {folder} (looked for NAME_t1ce.nii.gz, NAME-t1c.nii.gz "
            "and so on at any depth)"
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
        raise InputError(f"{place} holds the mask of {name} and no sequence of it")
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
            f"{folder} holds {count} patients; three splits need 3 or more"
        )
    names = records.divide(patient, _SHARES)
    by_name = {case.name: case for case in cases}
    return {
        split: [by_name[name] for name in sorted(of)] for split, of in names.items()
    }


def patient_of(case: str) -> str:
    """BraTS-GLI-00045-000 and -001 are two visits of one patient."""
    return re.sub(r"(BraTS-\w+-\d{5})-\d{3}", r"\1", case)


def slices(case: Case) -> Iterator[dict]:
    """The records of one case."""
    volumes = {kind: _read(path) for kind, path in case.files.items()}
    _check_shapes(case, volumes)
    seg = volumes.pop("seg")
    unknown = sorted(set(np.unique(seg).tolist()) - case.labels.keys())
    if unknown:
        raise InputError(
            f"{case.files['seg']} holds the label {unknown[0]:g}; beside files of such "
            f"names the labels are {', '.join(map(str, case.labels))}"
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
        # A number, by which an objective knows slices of one patient.
        patient = zlib.crc32(patient_of(case.name).encode()) & 0x7FFFFFFF
        example = {"case": case.name, "patient": patient, "slice": z}
        for s, volume in volumes.items():
            mean, deviation = scales[s]
            image = (_plane(volume[:, :, z]) - mean) / deviation * inside
            example[s] = halve(image).astype(np.float16)[..., None]
        yield example | {"mask": halve_labels(_plane(mask[:, :, z]))}


def halve(image: np.ndarray) -> np.ndarray:
    """The mean over 2x2 pixels: [2h, 2w, ...] to [h, w, ...]."""
    height, width, *rest = image.shape
    return image.reshape(height // 2, 2, width // 2, 2, *rest).mean((1, 3))


def halve_labels(mask: np.ndarray) -> np.ndarray:
    """The commonest label of 2x2 pixels, the largest of several: uint8[2h, 2w] to
    [h, w]."""
    counts = halve(np.eye(len(NAMES), dtype=np.float32)[mask])
    return (len(NAMES) - 1 - counts[..., ::-1].argmax(-1)).astype(np.uint8)


def _read(path: Path) -> np.ndarray:
    """A volume [right, anterior, superior], whatever order the file has."""
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        _check_shape(path, image.shape)  # before what a header claims is read
        volume = np.asarray(image.dataobj)
        if volume.dtype.kind not in "iuf":  # colours, complex numbers
            raise ValueError(f"its values are {volume.dtype}")
    except Exception as error:  # whatever a damaged header makes of nibabel
        if isinstance(error, InputError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path} cannot be read ({reason}); unpack or download it again"
        ) from None
    if not np.isfinite(volume).all():
        raise InputError(f"{path} holds values that are not finite; get it again")
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
                f"{case.files[kind]} has shape {volume.shape}, but others of its case "
                f"{common}; a case is registered to one grid"
            )


def _mean_and_deviation(values: np.ndarray, path: Path) -> tuple[float, float]:
    mean, deviation = values.mean(dtype=float), values.std(dtype=float)
    if not deviation > 0:
        raise InputError(
            f"{path} is the same everywhere; remove it if the sequence was not taken"
        )
    return mean, deviation


def _plane(plane: np.ndarray) -> np.ndarray:
    """[right, anterior] to rows from anterior, columns from left, padded to 240x240."""
    plane = np.rot90(plane)
    gaps = [SIDE - side for side in plane.shape]
    return np.pad(plane, [(gap // 2, gap - gap // 2) for gap in gaps])
