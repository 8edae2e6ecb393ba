"""Reward models that are fitted to comparisons of two items."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.batches import inputs_of
from fedlightning.core.validation import check_integer
from fedlightning.models.base import FederatedModule

__all__ = ["PreferenceModule", "RewardMLP", "RewardTable"]


class PreferenceModule(FederatedModule):
    r"""A reward for every item; two items are compared by Bradley and Terry's model.

    A batch is (pairs, labels): pairs of shape (n, 2, ...), labels of shape (n,), the probability in
    [0, 1] that the first item is preferred. The forward pass returns the gaps
    :math:`r(a) - r(b)`, whose sigmoid is the model's own probability. The loss is the mean
    cross-entropy :math:`-[y \log p + (1 - y) \log(1 - p)]`. In evaluation ``global/loss`` is the
    cross-entropy against the labels given, which may be true probabilities, ``global/acc`` how
    often the likelier item has the higher reward, ``global/max_reward`` the largest absolute
    reward. A subclass defines :meth:`reward`.
    """

    def reward(self, items: Tensor) -> Tensor:
        """Return the rewards of items, shape (n,).

        Args:
            items: Shape (n, ...).
        """
        raise NotImplementedError

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the gaps of shape (n,) between the rewards of pairs of shape (n, 2, ...)."""
        rewards = self.reward(pairs.flatten(0, 1)).view(-1, 2)
        return rewards[:, 0] - rewards[:, 1]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of one local batch."""
        pairs, labels = batch
        loss = F.binary_cross_entropy_with_logits(self(pairs), labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the probabilities that the first item is preferred, shape (n,)."""
        pairs = inputs_of(batch)
        probabilities: Tensor = self(pairs).sigmoid()
        return probabilities

    def _evaluate_batch(self, batch: Any, prefix: str) -> None:
        pairs, labels = batch
        gaps, size = self(pairs), len(labels)
        loss = F.binary_cross_entropy_with_logits(gaps, labels)
        agrees = ((gaps > 0) == (labels > 0.5)).float().mean()
        largest = self.reward(pairs.flatten(0, 1)).abs().max()
        self.log(f"{prefix}/loss", loss, batch_size=size)
        self.log(f"{prefix}/acc", agrees, prog_bar=True, batch_size=size)
        self.log(f"{prefix}/max_reward", largest, batch_size=size)


class RewardTable(PreferenceModule):
    """A reward for each item of a bandit, all 0 at first.

    Args:
        num_items: Number of items; an item is its number.
        **kwargs: Arguments of :class:`FederatedModule`.

    Example:
        >>> RewardTable(num_items=4)(torch.tensor([[0, 3], [2, 1]])).tolist()
        [0.0, 0.0]
    """

    def __init__(self, num_items: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_integer("num_items", num_items, at_least=2)
        self.save_hyperparameters()
        self.rewards = nn.Parameter(torch.zeros(num_items))

    def reward(self, items: Tensor) -> Tensor:
        """Return the rewards of items given by number, shape (n,)."""
        return self.rewards[items]


class RewardMLP(PreferenceModule):
    """A perceptron that gives an item, flattened, its reward.

    Args:
        in_features: Numbers per item; 64 for the 8x8 digits.
        hidden: Widths of the hidden layers, at least one.
        **kwargs: Arguments of :class:`FederatedModule`.

    Example:
        >>> RewardMLP(in_features=64, hidden=[16])(torch.rand(5, 2, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(self, in_features: int = 64, hidden: Sequence[int] = (32,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for width in (in_features, *hidden):
            check_integer("in_features and hidden", width, at_least=1)
        self.save_hyperparameters()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise([in_features, *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1], 1)

    def reward(self, items: Tensor) -> Tensor:
        """Return the rewards of items, shape (n,)."""
        rewards: Tensor = self.head(self.body(items))
        return rewards.squeeze(-1)
