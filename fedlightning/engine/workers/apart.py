"""A worker that trains or evaluates clients of its own: what the module asks is answered for one.

A metric object's ``compute()``, ``self.all_gather`` or ``trainer.strategy.barrier()`` would wait
for workers that are busy with other clients, and mix those clients' values into this one's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

__all__ = ["apart"]


@contextmanager
def apart() -> Iterator[None]:
    """Answer, inside the ``with`` block, that no process group is initialized.

    Torch, torchmetrics and Lightning all ask ``torch.distributed.is_initialized`` before a
    collective. Other threads of the process get the true answer. The block must not contain
    collectives of our own.

    Example:
        >>> with apart():
        ...     dist.is_initialized()
        False
    """
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    before, owner = dist.is_initialized, threading.get_ident()
    dist.is_initialized = _for_others(before, owner)
    try:
        yield
    finally:
        dist.is_initialized = before


def _for_others(answer: Callable[[], bool], owner: int) -> Callable[[], bool]:
    def is_initialized() -> bool:
        return threading.get_ident() != owner and answer()

    return is_initialized
