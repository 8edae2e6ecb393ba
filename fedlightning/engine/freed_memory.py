"""While a process trains, memory that it has freed stays with it.

A training step allocates its activations and frees them again. They are larger than what glibc
takes from its own heap, so each of them is mapped, filled with zeros by the kernel page by page,
and unmapped, in every step. Told to keep freed memory, glibc hands out the same pages again.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

__all__ = ["FreedMemory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
# With less than this, large activations and large gradients are still mapped anew in every step;
# a larger top pad saves nothing (``benchmarks/freed_memory.py``).
_TRAINING = {_TRIM_THRESHOLD: (1 << 31) - 1, _MMAP_THRESHOLD: 1 << 30}
# What glibc's own rule arrives at in a process that has freed large blocks: once one of these is
# set, it does not adapt them any more. Before 2.35, glibc refuses a larger mmap threshold.
_AFTERWARDS = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}
_OF_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


class FreedMemory:
    """Has the C allocator keep freed memory between :meth:`keep` and :meth:`give_back`.

    It does so where the allocator is glibc's; another one that is preloaded, settings of the user's
    (``MALLOC_...``, ``GLIBC_TUNABLES``) and other systems are left alone.

    Args:
        wanted: Whether to do anything.

    Example:
        >>> memory = FreedMemory(wanted=False)
        >>> memory.keep()
        False
        >>> memory.give_back()
    """

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted
        self._kept = False

    def keep(self) -> bool:
        """Keep freed memory from now on; return whether that is so."""
        glibc = _glibc() if self._wanted and not _set_by_user() else None
        if glibc is not None and not self._kept:
            self._kept = True
            _set(glibc, _AFTERWARDS)  # what an older glibc takes
            _set(glibc, _TRAINING)
        return self._kept

    def give_back(self) -> None:
        """Return free memory to the system, now and in future."""
        glibc = _glibc() if self._kept else None
        if glibc is not None:
            _set(glibc, _AFTERWARDS)
            glibc.malloc_trim(0)
        self._kept = False


def _set(glibc: ctypes.CDLL, values: dict[int, int]) -> None:
    """Set parameters of the allocator; what it refuses stays as it is."""
    for name, value in values.items():
        glibc.mallopt(name, value)


def _set_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc" in tunables or any(name in os.environ for name in _OF_THE_USER)


@cache
def _glibc() -> ctypes.CDLL | None:
    """Return glibc, if the process's ``malloc`` is its own."""
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        glibc, process = ctypes.CDLL("libc.so.6"), ctypes.CDLL(None)
        if _address(process.malloc) != _address(glibc.malloc):
            return None  # another allocator is preloaded
        glibc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
        glibc.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError):
        return None
    return glibc


def _address(function: object) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
