"""Prepare any data set of the TFDS catalogue, in TFDS's own layout.

Nothing is copied into our format: `polyview.data.sources.tfds` reads the array_record
files of TFDS in place. Most TFDS builders need TensorFlow to download and prepare;
reading never does.
"""

import contextlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from polyview.data.sources.tfds import find_tfds, import_tfds, without_tensorflow_banner
from polyview.errors import InputError, nearest


def prepare(
    data_dir: Path, name: str, manual_dir: Path | None, ours: Iterable[str]
) -> str:
    """Prepare a TFDS data set unless it exists; return a summary.

    `ours` lists our own data sets, to suggest for a mistyped name.

    Raises:
      InputError: there is no such name, or TFDS cannot prepare it here.
    """
    for place in (data_dir, None):
        with contextlib.suppress(InputError):
            return f"{find_tfds(name, place).data_dir} is there already"
    tfds = import_tfds()
    try:
        with without_tensorflow_banner():
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            if not importlib.util.find_spec("tensorflow"):
                raise InputError(
                    f"TFDS needs TensorFlow to prepare '{name}'; run `pip install "
                    "tensorflow-cpu`, or prepare it elsewhere as array_record and "
                    f"copy it to {data_dir / name}: reading needs no TensorFlow"
                )
            config = tfds.download.DownloadConfig(manual_dir=manual_dir)
            builder.download_and_prepare(download_config=config)
    except tfds.core.DatasetNotFoundError:
        raise InputError(
            f"no data set '{name}' in TFDS either{nearest(name, ours)}"
        ) from None
    except InputError:
        raise
    except Exception as error:  # downloads can raise any exception
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"TFDS could not prepare '{name}': {reason}") from None
    return f"wrote {builder.data_dir}"
