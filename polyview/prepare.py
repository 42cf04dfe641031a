"""Prepare a data set: find or fetch it, check it, write it as array_record.

    python -m polyview.prepare fashion_mnist

A set that is there already is checked and left alone.
"""

import argparse
from pathlib import Path

from polyview import errors
from polyview.data.prepare import digits, fashion_mnist, folder, imagenet2012, tfds
from polyview.data.prepare import records
from polyview.data.source import default_data_dir
from polyview.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    """Prepare the data set that the command line names."""
    options = _parse(arguments)
    directory = options.data_dir / (options.name or options.dataset)
    match options.dataset:
        case "digits":
            done = records.once(directory, digits.prepare)
        case "fashion_mnist":
            done = records.once(directory, fashion_mnist.prepare)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    errors.run(main)
