"""The digest of rows that are made of a source's."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from polyview.data.sources.protocol import Source


def derived(source: Source, how: Sequence[Any]) -> str:
    """Return a digest of a source's and of what is done to it; "" without one."""
    of = getattr(source, "digest", "")
    text = json.dumps([of, *how])
    return hashlib.sha256(text.encode()).hexdigest() if of else ""
