"""SUN attributes (Patterson et al. 2014): 14,340 photos of 717 scenes.

From the user's copy, as the archives unpack into --manual_dir:

    SUN/images/a/abbey/*.jpg                                or images/, as they unpack
    SUNAttributeDB/attributes.mat
    xlsa17/data/SUN/{res101,att_splits}.mat, *classes*.txt  of xlsa17.zip

The 102 attributes of a class are the mean over its images of shares of votes: 0 .. 1.
"""

from pathlib import Path

from polyview.data.prepare import xlsa17
from polyview.errors import InputError


def prepare(directory: Path, manual_dir: Path | None) -> None:
    """Write the splits of xlsa17; see `polyview.data.prepare.xlsa17.prepare`.

    Raises InputError for absent files and those that are not as above.
    """
    places = ("SUN/images", "SUNAttributeDB_Images/images", "images")
    images = xlsa17.find(manual_dir, "sun", *places)
    listed = xlsa17.find(manual_dir, "sun", "SUNAttributeDB/attributes.mat")
    content = xlsa17.load(listed, ["attributes"])
    if "attributes" not in content:
        raise InputError(f"{listed} has no attributes; unpack SUNAttributeDB.tar.gz")
    xlsa17.prepare(
        directory,
        xlsa17.find(manual_dir, "sun", "xlsa17/data/SUN"),
        images,
        {"names": xlsa17.texts(listed, content["attributes"])},
        "SUN attributes (Patterson et al. 2014)",
    )
