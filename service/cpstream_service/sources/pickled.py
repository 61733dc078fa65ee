"""Pickles of numpy data, read as data.

A pickle is a program. This one is run by the standard unpickler with an allow-list that holds nothing but the classes below, which
have no behaviour but to keep what they are given. Handing out numpy's own constructors, as allow-lists for numpy usually do, is not
enough: a crafted dtype state makes numpy take bytes of the file for object pointers.

What a row may hold beside its embedding and its path (dates, sets, tensors: `_IGNORED`) is built as an empty object of its name. A
name of neither list is refused, wherever it stands: a pickle that names a function is a program, however harmless it looks.
"""

import pickle
from typing import IO, Any

from .pickled_arrays import Array, Dtype, FromBuffer, Ignored, Name, Scalar
from .rows import gc_paused, kind_of


class NotAllowedError(pickle.UnpicklingError):
    """The pickle names something that data does not need. The message is its name."""


def load_pickle(file: IO[bytes]) -> Any:
    """What a pickle of plain data and numpy arrays holds, each array as an `Array`.

    Raises NotAllowedError, EOFError, pickle.UnpicklingError, or whatever else a damaged pickle leads to.
    """
    with gc_paused():
        # Python 2 wrote bytes as str: this keeps them apart from text, and gives them back unharmed.
        return _Unpickler(file, encoding="ascii", errors="surrogateescape").load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[_OF_PYTHON_2.get(module, module), name]
        except KeyError:
            raise NotAllowedError(f"{module}.{name}") from None


# What the unpickler may build beside arrays. Each class has __setstate__, so that a pickle cannot write into the class itself.


class _Memmap(Name):
    """numpy.memmap: an array of it is pickled with its numbers; called, it would write a file."""

    __slots__ = ()

    def __new__(cls, *args: object) -> Any:
        raise NotAllowedError("numpy.memmap")


class _Dict:
    """A defaultdict or OrderedDict, read as a dict."""

    __slots__ = ()

    def __new__(cls, *args: object) -> Any:
        return {}

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a dict has no state")


class _Bytes:
    """_codecs.encode(text, "latin1") and bytes(), as protocols 0 to 2 write bytes."""

    __slots__ = ()

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes of {kind_of(text)}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("bytes have no state")


class _Path:
    """A pathlib path, made a string at once."""

    __slots__ = ()

    def __new__(cls, *parts: str) -> Any:
        return "/".join(part.rstrip("/") if i < len(parts) - 1 else part for i, part in enumerate(parts))

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a path has no state")


class _Rebuilt:
    """copyreg._reconstructor(class, base, state), as protocols 0 and 1 make an object: of an ignored class only."""

    __slots__ = ()

    def __new__(cls, of: Any, *args: object) -> Any:
        if not (isinstance(of, type) and issubclass(of, Ignored)):
            raise NotAllowedError("copyreg._reconstructor")
        return of()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _names(module: str, name: str) -> list[tuple[str, str]]:
    return [(f"numpy.{core}.{module}", name) for core in ("core", "_core")]  # numpy 1, numpy 2


_OF_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # as protocols 0 to 2 have them still
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_IGNORED = {
    "builtins": "bytearray complex frozenset range set slice xrange",
    "collections": "Counter deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "numpy._core._internal": "_convert_to_stringdtype_kwargs",
    "numpy.ma.core": "MaskedArray _mareconstruct",
    "numpy.ma": "MaskedArray",
    "pandas._libs.tslibs.timestamps": "_unpickle_timestamp",
    "torch": "Size device float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool",
    "torch._utils": "_rebuild_parameter _rebuild_tensor _rebuild_tensor_v2",
    "torch.storage": "_load_from_bytes",
    "uuid": "SafeUUID UUID",
    "zoneinfo": "ZoneInfo._unpickle",
}
"""Classes and functions of values that rows may hold beside the embedding, by module. None of them is imported, let alone run."""

_ALLOWED: dict[tuple[str, str], type] = {
    **{
        (module, name): type(name, (Ignored,), {"__slots__": (), "kind": f"a value of {module}.{name}"})
        for module, names in _IGNORED.items()
        for name in names.split()
    },
    ("numpy", "dtype"): Dtype,
    ("numpy", "ndarray"): Name,
    ("numpy", "record"): Name,
    ("numpy.rec", "recarray"): Name,
    ("numpy", "matrix"): Name,
    ("numpy.matrixlib.defmatrix", "matrix"): Name,
    ("numpy", "memmap"): _Memmap,
    ("numpy.core.memmap", "memmap"): _Memmap,
    ("builtins", "list"): Name,
    ("builtins", "object"): Name,
    ("builtins", "bytes"): _Bytes,
    ("_codecs", "encode"): _Bytes,
    ("collections", "defaultdict"): _Dict,
    ("collections", "OrderedDict"): _Dict,
    ("copyreg", "_reconstructor"): _Rebuilt,
    **{(module, name): _Path for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **dict.fromkeys(_names("multiarray", "_reconstruct"), Array),
    **dict.fromkeys(_names("multiarray", "scalar"), Scalar),
    **dict.fromkeys(_names("numeric", "_frombuffer"), FromBuffer),
}
