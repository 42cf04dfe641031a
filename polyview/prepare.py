"""Prepare a data set: find or download it, check it, write it in an indexed format.

    python -m polyview.prepare fashion_mnist

An existing data set is checked and left unchanged; an interrupted preparation leaves
nothing under its name.
"""

import argparse
from pathlib import Path

from polyview import errors
from polyview.cli import Parser
from polyview.data.prepare.catalogue import DATA_SETS, prepare, prepare_folder
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    """Prepare the data set that the command line names."""
    flags = _parse(arguments)
    if flags.manual_dir is not None and not flags.manual_dir.is_dir():
        raise InputError(f"--manual_dir {flags.manual_dir} is not a folder")
    if flags.dataset != "folder":
        for flag in ("input", "name", "test_fraction"):
            if getattr(flags, flag) is not None:
                raise InputError(
                    f"--{flag} only applies to the data set 'folder'; leave it out"
                )
        print(prepare(flags.dataset, flags.data_dir, flags.manual_dir))
        return
    if flags.input is None or flags.name is None:
        raise InputError("folder requires --input DIR and --name NAME")
    fraction = 0.1 if flags.test_fraction is None else flags.test_fraction
    print(prepare_folder(flags.name, flags.data_dir, flags.input, fraction))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m polyview.prepare",
        description=__doc__,
        epilog=f"data sets:\n{DATA_SETS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", help="the data set to prepare; see below")
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="folder of the data sets (default: $POLYVIEW_DATA, else ./data)",
    )
    parser.add_argument("--manual_dir", type=Path, help="folder of downloaded files")
    parser.add_argument("--input", type=Path, help="(folder) the folder of images")
    parser.add_argument("--name", help="(folder) name of the new data set")
    parser.add_argument(
        "--test_fraction",
        type=float,
        help="(folder) fraction of each class held out (default: 0.1)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    errors.run(main)
