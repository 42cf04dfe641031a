"""What a run learnt from: its own data, and those of the runs that it started from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyview.config.spec import build
from polyview.config.trust import check_trusted, renewed
from polyview.data.sources.protocol import Source
from polyview.errors import InputError
from polyview.runs.init import entries_of
from polyview.runs.workdir import read_config


def training_sources(
    config: Mapping, trusted: frozenset[str] | None, within: tuple[str, ...] = ()
) -> list[Source] | None:
    """Return the data of a run with this config and of all that it started from.

    None if some are not known: a donor is a file of weights or is gone, or data cannot
    be built here. within: donors that led to this one.
    """
    own: dict[str, Any] = renewed(dict(config))
    try:
        check_trusted({"source": own["source"]}, trusted, where="source")
        found = [build(own["source"], trusted, where="source")]
        for donor in sorted({entry.donor for entry in entries_of(own)}):
            if donor in within:
                return None
            its = read_config(Path(donor)).to_dict()
            earlier = training_sources(its, trusted, (*within, donor))
            if earlier is None:
                return None
            found += earlier
    except (InputError, LookupError, AttributeError, TypeError):
        return None  # as of a donor whose config is no config
    return found if all(hasattr(one, "targets") for one in found) else None
