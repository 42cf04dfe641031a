"""Prepare a data set: find or fetch it, check it, write it so that it can be indexed.

    python -m polyview.prepare fashion_mnist

A set that is there already is checked and left alone; an interrupted one leaves no
trace under its name.
"""

import argparse
from pathlib import Path

from polyview import errors
from polyview.cli import Parser
from polyview.data.prepare import (
    brats,
    cifar10,
    digits,
    emoji,
    fashion_mnist,
    folder,
    imagenet2012,
    mri_phantom,
    openi,
    records,
    tfds,
)
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError

# Data sets whose files are downloaded, or found in --manual_dir.
FROM_FILES = {
    "brats": brats,
    "cifar10": cifar10,
    "emoji": emoji,
    "mri_phantom": mri_phantom,
    "openi": openi,
}
DATA_SETS = """
  digits          scikit-learn's 8x8 digits, no download
  fashion_mnist   28x28, 60,000 + 10,000
  cifar10         32x32, 50,000 + 10,000; downloaded, or found in --manual_dir
  imagenet2012    from the two tars of --manual_dir, without TensorFlow
  emoji           1,607 concepts drawn by four vendors, and their names; by npm
  openi           3,857 chest radiograph reports; the radiographs, if in --manual_dir
  mri_phantom     900 simulated slices of four MRI sequences with lesions: a phantom
  brats           BraTS 2018 to 2023, from your copy in --manual_dir
  folder          your images: --input DIR --name NAME
  mnist, ...      any other name is one of the TFDS catalogue
"""


def main(arguments: list[str] | None = None) -> None:
    """Prepare the data set that the command line names."""
    options = _parse(arguments)
    data_dir, name = options.data_dir, options.dataset
    if options.manual_dir is not None and not options.manual_dir.is_dir():
        raise InputError(f"--manual_dir {options.manual_dir} is not a folder")
    if name != "folder":
        for flag in ("input", "name", "test_fraction"):
            if getattr(options, flag) is not None:
                raise InputError(f"--{flag} is of the data set 'folder'; leave it out")
    match name:
        case "digits":
            message = records.once(data_dir / name, digits.prepare)
        case "fashion_mnist":
            message = records.once(data_dir / name, fashion_mnist.prepare)
        case _ if name in FROM_FILES:
            prepare = FROM_FILES[name].prepare
            message = records.once(
                data_dir / name,
                lambda directory: prepare(directory, options.manual_dir),
            )
        case "folder":
            if options.input is None or options.name is None:
                raise InputError("folder needs --input DIR and --name NAME")
            if not options.name or Path(options.name).name != options.name:
                raise InputError(
                    f"--name {options.name!r} is not a plain name; give --data_dir "
                    "beside it"
                )
            fraction = options.test_fraction
            message = records.once(
                data_dir / options.name,
                lambda directory: folder.prepare(
                    directory, options.input, 0.1 if fraction is None else fraction
                ),
            )
        case "imagenet2012":
            message = imagenet2012.prepare(data_dir, options.manual_dir)
        case _:
            ours = (*FROM_FILES, "digits", "fashion_mnist", "folder", "imagenet2012")
            message = tfds.prepare(data_dir, name, options.manual_dir, ours)
    print(message)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m polyview.prepare",
        description=__doc__,
        epilog=f"data sets:\n{DATA_SETS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", help="what to prepare, see below")
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="holds the data sets (default: $POLYVIEW_DATA, else ./data)",
    )
    parser.add_argument("--manual_dir", type=Path, help="holds files you downloaded")
    parser.add_argument("--input", type=Path, help="folder: the folder of images")
    parser.add_argument("--name", help="folder: what to call the data set")
    parser.add_argument(
        "--test_fraction",
        type=float,
        help="folder: share of each class held out (default: 0.1)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    errors.run(main)
