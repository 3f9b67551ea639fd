"""Calls of native functions: what Python has, as C expects it."""

import ctypes
from collections.abc import Callable
from types import NoneType
from typing import Any

import numpy as np
from torch import Tensor, nn

from abyssal.kernels.build import Signature

_CTYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}

Native = Callable[..., Any]  # an int, or None where the C function returns nothing


def callable_of(dll: ctypes.CDLL, name: str, signature: Signature) -> Native:
    """A function of the library that takes what Python has; a call costs about 2 us."""
    function = getattr(dll, f"ab_{name}")
    function.argtypes = [_CTYPES[kind] for kind in signature.kinds]
    function.restype = ctypes.c_int64 if signature.returns_int else None
    pointers = [i for i, kind in enumerate(signature.kinds) if kind == "p"]
    expected = len(signature.kinds)

    def call(*given: object) -> Any:
        values = list(given)
        if len(values) != expected:
            raise TypeError(f"ab_{name} takes {expected} values, got {len(values)}")
        for i in pointers:
            value = values[i]
            values[i] = _ADDRESS[type(value)](value)
        return function(*values)

    return call


class _Addresses(dict[type, Callable[[Any], int | None]]):
    """How to find the address of a value, by its type."""

    def __missing__(self, kind: type) -> Callable[[Any], int | None]:
        raise TypeError(f"{kind.__name__}, expected a Tensor, an array, an address or None")


def _address_of_array(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


_ADDRESS = _Addresses(
    {
        Tensor: Tensor.data_ptr,
        nn.Parameter: Tensor.data_ptr,
        np.ndarray: _address_of_array,
        np.memmap: _address_of_array,
        int: int,
        NoneType: lambda none: None,
    }
)
