"""Evaluation views: which clients are measured on which of their splits, and under which names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fedlightning.errors import ConfigError

__all__ = [
    "CENTRAL",
    "HELD_OUT",
    "RESERVED",
    "EvaluationView",
    "check_views",
    "file_in_view",
    "metric_in_view",
    "view_label",
]

CENTRAL = -1
"""Stands for a client in a view of data that belongs to no client, such as a central test set."""

HELD_OUT = "held_out"
"""Name of the view of the clients that never train."""

RESERVED = (
    "communication", "global", "initial", "personalized", "privacy", "seen", "test", "train", "val",
)  # fmt: skip
"""What the names of metrics begin with in the main view, so that no view can be called so."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class EvaluationView:
    """Clients and one of their splits, evaluated and reported together.

    A view's name stands before the names of its metrics and files: ``ood/global/acc``,
    ``ood_clients.csv``. The main view, the training clients on their own data, has none.

    Args:
        name: Letters, digits, ``_`` and ``-``; empty for the main view. Two views may share a name
            if one of them is of validation data.
        clients: Client ids in ascending order; ``(CENTRAL,)`` for data that belongs to no client,
            which the global model alone is evaluated on.
        split: ``"val"`` runs ``validation_step``, any other split ``test_step``.
        population: How many clients the view stands for, where ``clients`` is a sample of them.

    Raises:
        ConfigError: The name is malformed, or means something else in the names of metrics.

    Example:
        >>> view = EvaluationView("ood", range(10), "ood")
        >>> view.metric("global/acc"), view.file("clients.csv")
        ('ood/global/acc', 'ood_clients.csv')
    """

    name: str
    clients: Sequence[int]
    split: str = "test"
    population: int | None = None

    def __post_init__(self) -> None:
        if self.name and not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"the name of an evaluation view must be letters, digits, _ and -, "
                f"got {self.name!r}."
            )
        if self.name in RESERVED:
            raise ConfigError(
                f"an evaluation view cannot be called {self.name!r}, which already means something "
                "in the names of metrics; choose another name."
            )

    @property
    def is_central(self) -> bool:
        """Whether the view is of data that belongs to no client."""
        return len(self.clients) == 1 and self.clients[0] == CENTRAL

    @property
    def on_validation_data(self) -> bool:
        """Whether ``validation_step`` measures, and models may be selected by it."""
        return self.split == "val"

    @property
    def num_clients(self) -> int:
        """How many clients the view stands for."""
        return len(self.clients) if self.population is None else self.population

    def metric(self, name: str) -> str:
        """Return the name of one of the view's metrics."""
        return metric_in_view(self.name, name)

    def file(self, name: str) -> str:
        """Return the name of one of the view's files."""
        return file_in_view(self.name, name)


def metric_in_view(view: str, name: str) -> str:
    """Return the name of a metric of the view of a name."""
    return f"{view}/{name}" if view else name


def file_in_view(view: str, name: str) -> str:
    """Return the name of a file of the view of a name."""
    return f"{view}_{name}" if view else name


def view_label(view: str) -> str:
    """Return what figures call the view of a name.

    Example:
        >>> view_label("held_out"), view_label("ood")
        ('held-out clients', 'ood')
    """
    return "held-out clients" if view == HELD_OUT else view


def check_views(views: Sequence[EvaluationView]) -> None:
    """Check that no two views would log under the same names.

    Raises:
        ConfigError: Two views share a name, and both are of validation data or neither is.

    Example:
        >>> check_views([EvaluationView("ood", range(2), "a"), EvaluationView("ood", [0], "b")])
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: two evaluation views are called 'ood', of split 'a' and ...
    """
    seen: dict[tuple[str, bool], EvaluationView] = {}
    for view in views:
        other = seen.setdefault((view.name, view.on_validation_data), view)
        if other is not view:
            raise ConfigError(
                f"two evaluation views are called {view.name!r}, of split {other.split!r} and "
                f"{view.split!r}; give each a name of its own."
            )
