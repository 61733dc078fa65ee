"""Pickles of numpy data, read as data.

A pickle is a program. This one is run by the standard unpickler with an allow-list that holds nothing but the classes below, which
have no behaviour but to keep what they are given. Handing out numpy's own constructors, as allow-lists for numpy usually do, is not
enough: a crafted dtype state makes numpy take bytes of the file for object pointers.
"""

import pickle
import struct
from math import prod
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .rows import gc_paused

_STRUCT_ORDER = {"<": "<", ">": ">", "=": "=", "|": "="}
_STRUCT_CODES = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}
_STRUCT_CODES |= {"u1": "B", "u2": "H", "u4": "I", "u8": "Q"}


class NotAllowedError(pickle.UnpicklingError):
    """The pickle names something that data does not need. The message is its name."""


def load_pickle(file: IO[bytes]) -> Any:
    """What a pickle of plain data and numpy arrays holds, each array as an `Array`.

    Raises NotAllowedError, EOFError, pickle.UnpicklingError, or whatever else a damaged pickle leads to.
    """
    with gc_paused():
        return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise NotAllowedError(f"{module}.{name}") from None


# What the unpickler may build. Each class has __setstate__, so that a pickle cannot write into the class itself.


class _Name:
    """Stands for a class that a pickle names without calling it: numpy.ndarray, or the factory of a defaultdict."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a name has no state")


class _Dtype:
    """numpy.dtype(code, align, copy), then its state, of which only the byte order counts. unpack: bytes -> (scalar,)."""

    __slots__ = ("dtype", "is_float32", "is_object", "unpack")

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str):
            raise pickle.UnpicklingError(f"dtype {code!r}")
        self.is_object = code in ("O8", "O4", "O")
        self._set(np.dtype("V1") if self.is_object else np.dtype(code))

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"byte order {order!r}")
        self._set(self.dtype.newbyteorder(order))

    def _set(self, dtype: np.dtype[Any]) -> None:
        if dtype.kind not in "fiubUS" and not self.is_object:
            raise pickle.UnpicklingError(f"dtype {dtype} is neither of numbers nor of text")
        self.dtype, self.is_float32 = dtype, dtype == np.float32
        if dtype.kind in "fiub" and dtype.itemsize <= 8:
            self.unpack: Any = struct.Struct(_STRUCT_ORDER[dtype.byteorder] + _STRUCT_CODES[dtype.str[1:]]).unpack
        else:
            self.unpack = lambda data: (np.frombuffer(data, dtype, 1).item(),)


class Array:
    """An array as pickled.

    A vector of native float32 has `data`, its bytes, and `length`, its numbers. Any other array has its `state`: (version, shape,
    _Dtype, is_fortran, bytes or a list of objects).
    """

    __slots__ = ("data", "length", "state")
    data: bytes
    length: int

    def __init__(self, subtype: object, shape: object, code: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:  # runs for every row, when its bytes are still in the processor's cache
        _, shape, dtype, _, data = state
        if dtype.is_float32 and type(data) is bytes and len(shape) == 1 and shape[0] * 4 == len(data):
            self.data, self.length = data, len(data) >> 2
        else:
            self.state = state

    def vector(self) -> npt.NDArray[Any]:
        """The numbers of a one-dimensional array; ValueError if it is anything else."""
        if hasattr(self, "data"):
            return np.frombuffer(self.data, np.float32)
        _, shape, dtype, _, data = self.state
        if len(shape) != 1:
            raise ValueError(f"the embedding has shape {tuple(shape)}; it must have one dimension")
        if isinstance(data, list):
            return np.array([float(value) for value in data], np.float32)
        vector = np.frombuffer(data, dtype.dtype)
        if vector.dtype.kind not in "fiu" or vector.shape != tuple(shape):
            raise ValueError(f"the embedding is an array of {vector.dtype}, not of numbers")
        return vector

    def objects(self) -> list[Any]:
        """The elements of an array of objects, flat; ValueError if it is an array of anything else."""
        if not hasattr(self, "data"):
            _, shape, dtype, _, data = self.state
            if dtype.is_object and isinstance(data, list) and len(data) == prod(shape):
                return data
        raise ValueError("not an array of objects")


class _Scalar:
    """numpy scalar(dtype, bytes), made a plain Python number or string at once."""

    __slots__ = ()

    def __new__(cls, dtype: _Dtype, data: bytes) -> Any:
        return dtype.unpack(data)[0]

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a numpy scalar has no state")


class _FromBuffer:
    """numpy._core.numeric._frombuffer(bytes, dtype, shape, order), as pickle protocol 5 writes arrays."""

    __slots__ = ()

    def __new__(cls, data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> Any:
        array = Array(None, None, None)
        array.__setstate__((1, shape, dtype, order == "F", data))
        return array

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a buffer has no state")


class _Dict:
    """A defaultdict or OrderedDict, read as a dict."""

    __slots__ = ()

    def __new__(cls, *args: object) -> Any:
        return {}

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a dict has no state")


def _names(module: str, name: str) -> list[tuple[str, str]]:
    return [(f"numpy.{core}.{module}", name) for core in ("core", "_core")]  # numpy 1, numpy 2


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Name,
    ("builtins", "list"): _Name,
    ("collections", "defaultdict"): _Dict,
    ("collections", "OrderedDict"): _Dict,
    **dict.fromkeys(_names("multiarray", "_reconstruct"), Array),
    **dict.fromkeys(_names("multiarray", "scalar"), _Scalar),
    **dict.fromkeys(_names("numeric", "_frombuffer"), _FromBuffer),
}
