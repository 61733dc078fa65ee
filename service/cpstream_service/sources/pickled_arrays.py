"""numpy arrays, dtypes and scalars as a pickle describes them: built from the file's bytes, never by numpy's own constructors.

Each class has __setstate__, so that a pickle cannot write into the class itself.
"""

import pickle
import re
import struct
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .rows import kind_of

_FOREIGN_CODE = re.compile(r"[MmcVT]\d*")
_STRUCT_ORDER = {"<": "<", ">": ">", "=": "=", "|": "="}
_STRUCT_CODES = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}
_STRUCT_CODES |= {"u1": "B", "u2": "H", "u4": "I", "u8": "Q"}


class Name:
    """Stands for a class that a pickle names without calling it: numpy.ndarray, or the factory of a defaultdict."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a name has no state")


class Ignored:
    """Some other value of a row, which nobody asks for: nothing but its kind is kept."""

    __slots__ = ()
    kind: ClassVar[str] = "a numpy scalar that is no number"
    foreign, is_float32, is_object = "another kind", False, False  # where it stands for a dtype

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return object.__new__(cls)

    def _nothing(self, *args: object) -> None:
        """Whatever the pickle would put in."""

    __setstate__ = append = extend = add = update = __setitem__ = _nothing


class Dtype:
    """numpy.dtype(code, align, copy), then its state, of which only the byte order counts. unpack: bytes -> (scalar,).

    A dtype of neither numbers nor text (dates, records, complex numbers) is known by its code only: `foreign`, else None.
    """

    __slots__ = ("dtype", "foreign", "is_float32", "is_object", "unpack")

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        self.is_object = code in ("O8", "O4", "O")
        self.foreign = _foreign(code)
        if self.foreign is None and not isinstance(code, str):
            raise pickle.UnpicklingError(f"dtype {kind_of(code)}")
        self._set(np.dtype("V1") if self.is_object or self.foreign else np.dtype(str(code)))

    def __setstate__(self, state: Any) -> None:
        if self.foreign:
            return
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"byte order {kind_of(order)}")
        self._set(self.dtype.newbyteorder(order))

    def _set(self, dtype: np.dtype[Any]) -> None:
        if dtype.kind not in "fiubUS" and not self.is_object and not self.foreign:
            raise pickle.UnpicklingError(f"dtype {dtype} is neither of numbers nor of text")
        self.dtype, self.is_float32 = dtype, dtype == np.float32
        if dtype.kind in "fiub" and dtype.itemsize <= 8:
            self.unpack: Any = struct.Struct(_STRUCT_ORDER[dtype.byteorder] + _STRUCT_CODES[dtype.str[1:]]).unpack
        else:
            self.unpack = lambda data: (np.frombuffer(data, dtype, 1).item(),)


def _foreign(code: object) -> str | None:
    """The code of a dtype that no embedding has but another value of a row may: datetime64, a record, complex, bytes."""
    if isinstance(code, str) and _FOREIGN_CODE.fullmatch(code):
        return code
    return "V" if code is Name else None


class Array:
    """An array as pickled.

    A vector of native float32, singleton axes aside, has `data`, its bytes, and `length`, its numbers. Any other array has its
    `state`: (version, shape, Dtype, is_fortran, bytes or a list of objects).
    """

    __slots__ = ("data", "length", "state")
    kind: ClassVar[str] = "an array"
    data: bytes
    length: int

    def __init__(self, subtype: object, shape: object, code: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:  # runs for every row, when its bytes are still in the processor's cache
        _, shape, dtype, _, data = state
        if dtype.is_float32 and type(data) is bytes:
            if (shape[0] if len(shape) == 1 else _longest(shape)) * 4 == len(data):
                self.data, self.length = data, len(data) >> 2
                return
        elif type(data) is str:  # by Python 2
            state = (*state[:4], data.encode("ascii", "surrogateescape"))
        self.state = state

    def vector(self) -> npt.NDArray[Any]:
        """The numbers of an array with at most one axis that is longer than 1; ValueError if it is anything else."""
        if hasattr(self, "data"):
            return np.frombuffer(self.data, np.float32)
        if not hasattr(self, "state"):
            raise ValueError("the embedding is an array without numbers")
        _, shape, dtype, _, data = self.state
        if _longest(shape) < 0:
            raise ValueError(f"the embedding has shape {tuple(shape)}; it must have one dimension")
        if isinstance(data, list):
            return np.array([float(value) for value in data], np.float32)
        if dtype.foreign:
            raise ValueError(f"the embedding is an array of {dtype.foreign}, not of numbers")
        vector = np.frombuffer(data, dtype.dtype)
        if vector.dtype.kind not in "fiu" or vector.size != _longest(shape):
            raise ValueError(f"the embedding is an array of {vector.dtype}, not of numbers")
        return vector

    def objects(self) -> list[Any]:
        """The elements of an array of objects, flat; ValueError if it is an array of anything else."""
        if hasattr(self, "state"):
            _, shape, dtype, _, data = self.state
            if dtype.is_object and isinstance(data, list) and len(data) == prod(shape):
                return data
        raise ValueError("not an array of objects")


def _longest(shape: tuple[int, ...]) -> int:
    """The length of a vector of this shape, singleton axes aside; -1 where several axes are longer than 1, or there is none."""
    longest = max(shape, default=-1)
    return longest if longest == prod(shape) else -1


class Scalar:
    """numpy scalar(dtype, bytes), made a plain Python number or string at once."""

    __slots__ = ()

    def __new__(cls, dtype: Dtype, data: Any) -> Any:
        if dtype.foreign or dtype.is_object:
            return Ignored()
        return dtype.unpack(data.encode("ascii", "surrogateescape") if type(data) is str else data)[0]

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a numpy scalar has no state")


class FromBuffer:
    """numpy._core.numeric._frombuffer(bytes, dtype, shape, order), as pickle protocol 5 writes arrays."""

    __slots__ = ()

    def __new__(cls, data: bytes | bytearray, dtype: Dtype, shape: tuple[int, ...], order: str) -> Any:
        array = Array(None, None, None)
        array.__setstate__((1, shape, dtype, order == "F", bytes(data)))
        return array

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a buffer has no state")
