"""Any data set of the TFDS catalogue, in TFDS's own layout.

There is no copy in our format: `polyview.data.sources.tfds` reads in place what TFDS
wrote as array_record. Most of TFDS's builders need TensorFlow to download and prepare;
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
    """Prepare a TFDS data set unless it is there; returns where it is, in words.

    ours: names of data sets that are not of TFDS, to correct a mistyped one.

    Raises:
      InputError: no such name, or TFDS cannot prepare it here.
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
                    "tensorflow-cpu`, or copy what was prepared elsewhere (as "
                    f"array_record) to {data_dir / name}: reading does without"
                )
            config = tfds.download.DownloadConfig(manual_dir=manual_dir)
            builder.download_and_prepare(download_config=config)
    except tfds.core.DatasetNotFoundError:
        raise InputError(
            f"no data set '{name}' in TFDS either{nearest(name, ours)}"
        ) from None
    except InputError:
        raise
    except Exception as error:  # a download fails in as many ways as there are hosts
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"TFDS could not prepare '{name}': {reason}") from None
    return f"wrote {builder.data_dir}"
