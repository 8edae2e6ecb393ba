"""An algorithm: what clients train, what they share, how the server merges it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fedlightning.aggregation import Sums, WeightedMean
from fedlightning.errors import ConfigError
from fedlightning.parts import Part, Parts, State

__all__ = ["Algorithm", "ClientUpdate", "Weights"]

Weights = Literal["uniform", "examples"]


@dataclass(frozen=True)
class ClientUpdate:
    """What comes back from one client.

    Args:
        client: Client id.
        state: The shared part after local training. It is a view of the resident model and is
            overwritten when the next client starts: clone what must live longer.
        num_examples: Number of the client's training examples.
        steps: Optimizer steps taken.
        metrics: Example-weighted means of what the client logged.
    """

    client: int
    state: Mapping[str, Tensor]
    num_examples: int
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def outputs(self) -> dict[str, Any]:
        """What ``on_train_batch_end`` gets: ``loss``, ``client`` and ``metrics``."""
        losses = [value for name, value in self.metrics.items() if "loss" in name]
        return {
            "loss": torch.tensor(losses[0] if losses else math.nan),
            "client": self.client,
            "metrics": dict(self.metrics),
        }


class Algorithm:
    """Federated learning as a choice of two parts and a mean.

    Each round the cohort's clients start from the global model, train the part ``train`` and send
    back the part ``share``; the server averages what it gets. What a client trains and does not
    share it keeps for the next time it is chosen, unless ``keep`` is false.

    Args:
        train: The part that moves during local training; the rest is frozen.
        share: The part that is averaged.
        weights: Weights of the mean: ``uniform``, or in proportion to the clients' ``examples``.
        keep: Whether clients keep what they train and do not share.
        sums: Precision in which the server adds (see
            :class:`fedlightning.aggregation.WeightedMean`).

    Raises:
        ConfigError: If a value is not one of the choices.

    Example:
        >>> Algorithm(train="body", share="body", weights="uniform")
        Algorithm(train='body', share='body', weights='uniform', keep=True, sums='float64')
    """

    def __init__(
        self,
        train: Part = "full",
        share: Part = "full",
        weights: Weights = "examples",
        keep: bool = True,
        sums: Sums = "float64",
    ) -> None:
        for key, value, choices in (
            ("train", train, get_args(Part)),
            ("share", share, get_args(Part)),
            ("weights", weights, get_args(Weights)),
            ("sums", sums, get_args(Sums)),
        ):
            if value not in choices:
                raise ConfigError(
                    f"algorithm.{key} must be one of {', '.join(choices)}, got {value!r}."
                )
        self.train = train
        self.share = share
        self.weights = weights
        self.keep = keep
        self.sums: Sums = sums

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({settings})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(repr(self))

    @property
    def name(self) -> str:
        """The name to show."""
        return type(self).__name__

    @property
    def needs_parts(self) -> bool:
        """Whether body and head must be told apart."""
        return self.train != "full" or self.share != "full"

    @property
    def stateful(self) -> bool:
        """Whether clients keep something from round to round."""
        return self.keep and self.share != "full" and self.train != self.share

    def kept_keys(self, parts: Parts) -> tuple[str, ...]:
        """Return the keys that stay with a client: trained, not shared.

        Example:
            >>> parts = Parts(body=("body.weight",), head=("head.weight",))
            >>> Algorithm(train="full", share="body").kept_keys(parts)
            ('head.weight',)
            >>> Algorithm(train="body", share="body").kept_keys(parts)
            ()
        """
        if not self.stateful:
            return ()
        shared = set(parts.keys(self.share))
        return tuple(key for key in parts.keys(self.train) if key not in shared)

    def weight(self, update: ClientUpdate) -> float:
        """Return an update's weight in the mean."""
        return 1.0 if self.weights == "uniform" else float(update.num_examples)

    def aggregate(self, updates: Iterable[ClientUpdate]) -> State:
        """Merge a cohort's updates into the next global state of the shared part.

        Args:
            updates: One per client, in cohort order. They are produced while they are read: each is
                valid until the next one is asked for.

        Returns:
            The new values; keys that are left out keep their old ones.
        """
        mean = WeightedMean(self.sums)
        for update in updates:
            mean.push(update.state, self.weight(update))
        return mean.result()
