"""What an idiom is: a module, data for it, and what is known of its right values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

FEATURES, CLASSES = 4, 3

Examples = tuple[Tensor, Tensor]


def classes(n: int, seed: int) -> Examples:
    """Return n examples whose class is the largest of the first three features, mostly."""
    draw = torch.Generator().manual_seed(3000 + seed)  # with which no score stands still
    x = torch.randn(n, FEATURES, generator=draw)
    noise = 0.5 * torch.randn(n, CLASSES, generator=draw)
    return x, (x[:, :CLASSES] + noise).argmax(dim=1)


@dataclass(frozen=True)
class Data:
    """Every client's examples, and what a batch of them looks like.

    Args:
        sizes: Examples of each client, those held out for validation included.
        tests: Test examples of each client.
        examples: Makes n examples from a seed.
        batch_size: Examples a batch. The last batch of most clients is shorter, so that it shows
            whether batches are weighted.
        val_fraction: Share of the examples that is held out for validation.
        wrap: Makes what the module gets of ``(inputs, labels)``.
        dataset: Makes a client's dataset, where it is not a pair of tensors.
    """

    sizes: tuple[int, ...] = (15, 9, 21)
    tests: tuple[int, ...] = (6, 5, 9)
    examples: Callable[[int, int], Examples] = classes
    batch_size: int = 4
    val_fraction: float = 1 / 3
    wrap: Callable[[Any], Any] | None = None
    dataset: Callable[[Tensor, Tensor], Dataset[Any]] | None = None


@dataclass(frozen=True, eq=False)
class Idiom:
    """One way to write a module, or to use it, that plain Lightning knows.

    Args:
        name: Name of the test.
        title: What a reader of the table sees.
        module: Makes the module; it is called with the same seed each time.
        data: The clients' examples.
        flags: Arguments of both trainers.
        callbacks: Makes callbacks for both trainers.
        rounds: Rounds, and as many epochs of plain Lightning if there is one local epoch a round.
        epochs: Local epochs a round. What stays with a client from epoch to epoch, as an
            optimizer's momentum does, is compared in one round of several epochs: each round begins
            with fresh clients.
        plain: Makes the module that plain Lightning runs, where the documented number is what it
            gives for a slightly different one.
        pooled: Names that the module logs once at the end of a validation or test epoch, so over
            all clients' examples.
        objects: Names under which it logs metric objects in validation or test steps.
        unlike: Names whose value is left open, such as that of a last step.
        resumes: Whether the run is stopped after its first round and resumed from the checkpoint.
        plain_resumes: Whether plain Lightning is resumed likewise; else it goes on without a stop.
        quick_workers: Whether two workers are compared in the quick tests, too.
        refused: What the error says, where the idiom is refused before round 0.
        may_be_refused: Whether being right is as good as being refused in such words.
        in_plain_too: Whether plain Lightning refuses the idiom as well.
        warns: What both trainers warn of.
        ignores: Warnings that do not count.
        one: Whether it is compared on one client.
        three: Whether it is compared on three clients.
        personal: Whether the clients are fine-tuned, too.
        start: Runs it, where that is not ``trainer.fit``.
        apart: Whether the module uses state outside of its ``state_dict``: with one client it
            lasts, as in plain Lightning; several clients each have their own.
        tests_in_fit: Whether the test data seen by ``fit`` are compared.
        show: The number that the table shows.
        why: Why it is refused, or in what the number differs.
    """

    name: str
    title: str
    module: Callable[[], pl.LightningModule]
    data: Data = field(default_factory=Data)
    flags: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[pl.Callback]] = list
    rounds: int = 2
    epochs: int = 1
    plain: Callable[[], pl.LightningModule] | None = None
    pooled: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    resumes: bool = False
    plain_resumes: bool = False
    quick_workers: bool = False
    refused: str | None = None
    may_be_refused: bool = False
    in_plain_too: bool = False
    warns: str | None = None
    ignores: str | None = None
    one: bool = True
    three: bool = True
    personal: bool = False
    start: Callable[[pl.Trainer, pl.LightningModule, dict[str, Any]], None] | None = None
    apart: bool = False
    tests_in_fit: bool = True
    show: str = "val/loss"
    why: str = ""

    def __repr__(self) -> str:
        return self.name


# -- what a module does that no trainer shows --------------------------------------------------

_NOTES: list[dict[str, list[Any]]] = []


def note(about: str, value: Any) -> None:
    """Note something, from within a module: plain Lightning and a federation must note the same.

    Args:
        about: What it is about; what is noted of one thing is compared in order.
        value: A number, a text, or a tuple of them.
    """
    if _NOTES:
        _NOTES[-1].setdefault(about, []).append(value)


@contextmanager
def noting() -> Iterator[dict[str, list[Any]]]:
    """Collect notes inside the ``with`` block."""
    notes: dict[str, list[Any]] = {}
    _NOTES.append(notes)
    try:
        yield notes
    finally:
        _NOTES.pop()
