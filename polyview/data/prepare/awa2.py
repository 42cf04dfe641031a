"""Animals with Attributes 2 (Xian et al. 2019): 37,322 photos of 50 animals.

From the user's copy, as the archives unpack into --manual_dir:

    Animals_with_Attributes2/JPEGImages/antelope/*.jpg
    Animals_with_Attributes2/predicates.txt
    xlsa17/data/AWA2/{res101,att_splits}.mat, *classes*.txt  of xlsa17.zip

Of the two published tables of 85 attributes this is the continuous one, as published: 0
.. 100, and -1 in four places. The binary one is not read.
"""

from pathlib import Path

from polyview.data.prepare import xlsa17


def prepare(directory: Path, manual_dir: Path | None) -> None:
    """Write the splits of xlsa17; see `polyview.data.prepare.xlsa17.prepare`.

    Raises InputError for absent files and those that are not as above.
    """
    root = xlsa17.find(manual_dir, "awa2", "Animals_with_Attributes2")
    xlsa17.prepare(
        directory,
        xlsa17.find(manual_dir, "awa2", "xlsa17/data/AWA2"),
        xlsa17.find(root, "awa2", "JPEGImages"),
        {"names": xlsa17.numbered(xlsa17.find(root, "awa2", "predicates.txt"))},
        "Animals with Attributes 2 (Xian et al. 2019)",
    )
