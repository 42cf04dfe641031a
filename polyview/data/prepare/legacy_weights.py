"""Read weights in torch's format before 1.6, a pickle, without torch and without trust.

The file is five pickles and raw numbers (`torch.save` before 2020):

    a magic number, the protocol, the byte order and sizes
    the dict of tensors, each a view of a storage that is named by a key
    the list of the keys, and for each: int64 length, then the numbers

A pickle can run code: it calls whatever it names. Ours may name four things, all of
which stand for data, and use the operations that such a dict needs. Neither an array
nor what is allocated before it is larger than the file.
"""

import collections
import io
import math
import pickle
import pickletools
import struct
from typing import Any, NamedTuple

import numpy as np

from polyview.errors import InputError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_TYPES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "LongStorage": np.dtype("<i8"),
}
# What builds dicts, lists, tuples, strings and whole numbers, and calls what is named.
_OPERATIONS = frozenset(
    "APPEND APPENDS BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD "
    "EMPTY_DICT EMPTY_LIST EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK "
    "NEWFALSE NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS STOP TUPLE TUPLE1 TUPLE2 "
    "TUPLE3".split()
)


class _Refused(Exception):
    """The content is not such a file; the message says why."""


class _Storage(NamedTuple):
    key: str
    kind: str
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(content: bytes, what: str) -> dict[str, np.ndarray]:
    """Return the float32 and int64 arrays of a state dictionary, by name.

    Raises InputError, which begins with `what`, for anything else: another global or
    operation, another type or order of the numbers, or a file that is cut or too long.
    """
    try:
        return _arrays(content)
    except _Refused as refusal:
        why = f"{refusal}"
    except Exception as error:  # untrusted content can fail in any way
        why = f"{type(error).__name__}: {error}"
    raise InputError(f"{what} holds no weights in torch's legacy format: {why:.300}")


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    at, parts = 0, []
    for _ in range(5):
        part, at = _unpickled(content, at)
        parts.append(part)
    magic, protocol, system, tensors, keys = parts
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise _Refused("another magic number or protocol")
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise _Refused("its numbers are not little-endian")
    if not isinstance(tensors, dict) or not isinstance(keys, list):
        raise _Refused("no dict of tensors and list of keys")
    if not all(type(n) is str and type(x) is _Tensor for n, x in tensors.items()):
        raise _Refused("the dict holds more than tensors by name")
    storages = {x.storage.key: x.storage for x in tensors.values()}
    if len(set(keys)) != len(keys) or set(keys) != storages.keys():
        raise _Refused("the keys are not those of its tensors")
    numbers = {}
    for key in keys:
        storage = storages[key]
        (length,) = struct.unpack_from("<q", content, at)
        if length != storage.length:
            raise _Refused(f"storage {key} has {length} numbers, not {storage.length}")
        kind, at = _TYPES[storage.kind], at + 8
        numbers[key] = np.frombuffer(content, kind, length, at)
        at += length * kind.itemsize
    if at != len(content):
        raise _Refused(f"{len(content) - at} bytes follow the last number")
    return {name: _array(x, numbers[x.storage.key]) for name, x in tensors.items()}


def _array(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Return a tensor's view of its storage, which need not be contiguous."""
    shape, strides, count = tensor.shape, tensor.strides, math.prod(tensor.shape)
    if numbers.dtype != _TYPES[tensor.storage.kind]:  # the key of two storages
        raise _Refused(f"storage {tensor.storage.key} has two types")
    if not count:
        return np.zeros(shape, numbers.dtype)
    steps = zip(shape, strides, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in steps)
    if last >= len(numbers) or count > len(numbers):
        raise _Refused("a tensor is larger than its storage")
    steps_in_bytes = [stride * numbers.itemsize for stride in strides]
    begun = numbers[tensor.offset :]
    return np.lib.stride_tricks.as_strided(begun, shape, steps_in_bytes)


def _unpickled(content: bytes, start: int) -> tuple[Any, int]:
    """Return the value of the pickle at `start`, and where the next one begins."""
    stream = io.BytesIO(content)
    stream.seek(start)
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if operation.name not in _OPERATIONS:
            raise _Refused(f"the operation {operation.name}")
        # A place in the memo is allocated with all below it.
        if operation.name == "LONG_BINPUT" and (argument or 0) > count:
            raise _Refused("a place in the memo beyond its length")
    end = stream.tell()
    return _Unpickler(io.BytesIO(content[start:end])).load(), end


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows four names, none of which does anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _TYPES:
            return name
        raise _Refused(f"it would call {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        word, kind, key, _, length, view = pid
        if word != "storage" or kind not in _TYPES or view is not None:
            raise _Refused("a storage of another form")
        if type(key) is not str:
            raise _Refused("a storage without a name")
        return _Storage(key, kind, _whole(length))


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any
) -> _Tensor:
    """Stand in for `torch._utils._rebuild_tensor_v2`; nothing is allocated."""
    if type(storage) is not _Storage or hooks:
        raise _Refused("a tensor of another form")
    sizes, strides = tuple(map(_whole, size)), tuple(map(_whole, stride))
    if len(sizes) != len(strides) or len(sizes) > 8:
        raise _Refused("a tensor of another form")
    return _Tensor(storage, _whole(offset), sizes, strides)


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**40:
        raise _Refused("a size that is not a whole number of a usual size")
    return number
