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
from polyview.data.prepare.folder import Rules
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    """Prepare the data set that the command line names."""
    flags = _parse(arguments)
    if flags.manual_dir is not None and not flags.manual_dir.is_dir():
        raise InputError(f"--manual_dir {flags.manual_dir} is not a folder")
    if flags.dataset != "folder":
        for flag in ("input", "name", "labels", "test_fraction", "range", "again"):
            if getattr(flags, flag):
                raise InputError(
                    f"--{flag} only applies to the data set 'folder'; leave it out"
                )
        print(prepare(flags.dataset, flags.data_dir, flags.manual_dir))
        return
    if flags.input is None or flags.name is None:
        raise InputError("folder requires --input DIR and --name NAME")
    fraction = 0.1 if flags.test_fraction is None else flags.test_fraction
    rules = Rules(flags.labels, fraction, flags.range and tuple(flags.range))
    print(prepare_folder(flags.name, flags.data_dir, flags.input, rules, flags.again))


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
        "--labels",
        metavar="RULE",
        help="(folder) top: the first folder is the class (default); leaf: the folder "
        "of the image; none; or a CSV file with a header: path,label",
    )
    parser.add_argument(
        "--test_fraction",
        type=float,
        help="(folder) fraction of each class held out (default: 0.1)",
    )
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="(folder) values that become black and white, in images of more than 8 "
        "bits (default: 0 1 for floats, 0 65535 for integers)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="(folder) replace the data set of this name, once the new one is whole",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    errors.run(main)
