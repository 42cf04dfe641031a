"""CUB-200-2011 (Wah et al. 2011): 11,788 photos of 200 birds, with 312 attributes.

From the user's copy, as the archives unpack into --manual_dir:

    CUB_200_2011/images/001.Black_footed_Albatross/*.jpg    of CUB_200_2011.tgz
    attributes.txt                                          of CUB_200_2011.tgz
    xlsa17/data/CUB/{res101,att_splits}.mat, *classes*.txt  of xlsa17.zip

Each class has its attributes as the percentage of annotators who saw them: 0 .. 100.
"""

from pathlib import Path

from polyview.data.prepare import xlsa17
from polyview.errors import InputError


def prepare(directory: Path, manual_dir: Path | None) -> None:
    """Write the splits of xlsa17; see `polyview.data.prepare.xlsa17.prepare`.

    An attribute's slot is its group: "has_bill_shape" of "has_bill_shape::cone". Raises
    InputError for absent files and those that are not as above.
    """
    images = xlsa17.find(manual_dir, "cub", "CUB_200_2011/images")
    listed = xlsa17.find(
        manual_dir, "cub", "attributes.txt", "CUB_200_2011/attributes/attributes.txt"
    )
    names = xlsa17.numbered(listed)
    if odd := [name for name in names if "::" not in name]:
        raise InputError(f"{listed}: {odd[0]!r} is not GROUP::VALUE")
    xlsa17.prepare(
        directory,
        xlsa17.find(manual_dir, "cub", "xlsa17/data/CUB"),
        images,
        {"names": names, "slots": [name.partition("::")[0] for name in names]},
        "CUB-200-2011 (Wah et al. 2011)",
    )
