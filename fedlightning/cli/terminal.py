"""Console output: one line per warning, Lightning's informational messages suppressed."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["debugging", "is_first_process", "print_error", "print_note", "print_warning", "quiet"]

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
# They list the devices, repeat the seed and advertise other products.
_CHATTY = (
    "lightning_fabric.utilities.distributed",
    "lightning_fabric.utilities.seed",
    "pytorch_lightning.trainer.connectors.signal_connector",
    "pytorch_lightning.utilities.rank_zero",
)
_ADVICE = re.compile(
    r".*does not have many workers"
    r"|.*\.configure_optimizers` will be overridden by"  # which is the purpose of `optimizer:`
    r"|Checkpoint directory .* exists and is not empty"  # a run resumed in its own folder
    r"|The `srun` command is available"
    r"|.*isinstance\(treespec, LeafSpec\)"
)


def debugging() -> bool:
    """Whether ``FEDLIGHTNING_DEBUG`` asks for tracebacks and all of Lightning's messages."""
    return os.environ.get("FEDLIGHTNING_DEBUG", "") not in ("", "0")


def is_first_process() -> bool:
    """Whether this is the process of a distributed run that reports for all of them."""
    return all(os.environ.get(name, "0") in ("", "0") for name in _RANKS)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress, inside the ``with`` block, messages that do not concern a federated run."""
    if debugging():
        yield
        return
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("default")
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
        warnings.showwarning = _show
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def print_warning(text: str) -> None:
    """Print a warning as one line on stderr."""
    _print("warning: " + text)


def print_error(text: str) -> None:
    """Print an error as one line on stderr."""
    _print("error: " + text)


def print_note(text: str) -> None:
    """Print a note as one line on stderr."""
    _print(text)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    text = str(message)
    if not _ADVICE.match(text) and category.__name__ != "PossibleUserWarning":
        print_warning(text)


def _print(text: str) -> None:
    if sys.stdout is not None and sys.stdout.isatty():
        print(flush=True)  # a progress bar may have left the cursor in its line
    print(" ".join(text.split()), file=sys.stderr, flush=True)
