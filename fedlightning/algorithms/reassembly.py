"""Which layers of several networks make a new one: groups of layers that do alike, and rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Cut", "Rules", "assemble", "group_layers", "rules"]


@dataclass(frozen=True)
class Cut:
    """A layer that was cut out of a network.

    Args:
        network: Which network it is from.
        index: The layer's number in it, in the order of a forward pass.
        operation: What it does: ``conv``, ``pool`` or ``fc``.
        group: The group of layers that do alike.
    """

    network: int
    index: int
    operation: str
    group: int


class Rules(NamedTuple):
    """Which rules a list of layers obeys.

    Args:
        increasing: R1: each layer's number is larger than that of the one before.
        in_order: R2: no convolution or pooling after a linear layer.
        all_operations: R3: every operation occurs.
        all_groups: R4: every group occurs.
    """

    increasing: bool
    in_order: bool
    all_operations: bool
    all_groups: bool


def rules(layers: Sequence[Cut], operations: Collection[str], groups: Collection[int]) -> Rules:
    """Return which rules a list of layers obeys.

    Args:
        layers: The layers, in order.
        operations: All operations that there are.
        groups: All groups that there are.

    Example:
        >>> conv, fc = Cut(0, 0, "conv", 0), Cut(1, 1, "fc", 1)
        >>> all(rules([conv, fc], {"conv", "fc"}, {0, 1})), all(rules([fc, conv], {"fc"}, {0, 1}))
        (True, False)
    """
    return Rules(
        all(one.index < other.index for one, other in pairwise(layers)),
        all(_may_follow(one, other) for one, other in pairwise(layers)),
        {layer.operation for layer in layers} >= set(operations),
        {layer.group for layer in layers} >= set(groups),
    )


def group_layers(distances: Tensor, groups: int) -> list[int]:
    """Group layers around medoids, so that the sum of distances to them is small.

    The first medoid is the layer nearest to all others, each further one the layer farthest from
    those before; then layers join the nearest medoid, and medoids move to the middle of their
    groups, until none moves. No group is ever empty. Nothing is random.

    Args:
        distances: Shape (layers, layers); may be infinite.
        groups: Number of groups; as many as there are layers at most.

    Returns:
        The group of each layer, from 0.

    Example:
        >>> places = torch.tensor([0.0, 0.1, 5.0, 5.1, 0.2])
        >>> group_layers((places[:, None] - places).abs(), 2)
        [0, 0, 1, 1, 0]
    """
    finite = distances[distances.isfinite()]
    far = 1e3 * float(finite.max()) if finite.numel() else 1.0
    distances = distances.double().clamp(max=far)
    medoids = [int(distances.sum(dim=1).argmin())]
    while len(medoids) < min(groups, len(distances)):
        nearest = distances[:, medoids].amin(dim=1)
        nearest[medoids] = -1
        medoids.append(int(nearest.argmax()))
    best = torch.inf
    while True:
        members = distances[:, medoids].argmin(dim=1)
        members[medoids] = torch.arange(len(medoids), device=members.device)
        total = float(distances[torch.arange(len(members)), torch.tensor(medoids)[members]].sum())
        if not total < best:
            return [int(group) for group in members]
        best, medoids = total, [_middle(distances, members == g) for g in range(len(medoids))]


def assemble(layers: Sequence[Cut]) -> list[tuple[Cut, ...]]:
    """Return lists of layers that obey all rules, at most one for each layer as a start.

    A list takes the earliest layer that obeys R1 and R2, of equally early ones that of the next
    group, then that of the next network, until none is left; where R3 or R4 is broken in the end,
    it goes back and takes another one. So there is a list for every start from which there can be
    one.

    Args:
        layers: The layers of all networks.

    Example:
        >>> one = [Cut(0, 0, "conv", 0), Cut(0, 1, "fc", 1)]
        >>> other = [Cut(1, 0, "conv", 0), Cut(1, 1, "fc", 1)]
        >>> [[cut.network for cut in found] for found in assemble(one + other)]
        [[0, 1], [1, 0]]
    """
    operations, groups = {cut.operation for cut in layers}, {cut.group for cut in layers}
    networks = 1 + max(cut.network for cut in layers)
    in_vain: set[tuple[Cut, frozenset[str], frozenset[int]]] = set()

    def completed(chosen: tuple[Cut, ...]) -> tuple[Cut, ...] | None:
        last = chosen[-1]
        able = [cut for cut in layers if cut.index > last.index and _may_follow(last, cut)]
        if not able:
            return chosen if all(rules(chosen, operations, groups)) else None
        kinds = frozenset(c.operation for c in chosen), frozenset(c.group for c in chosen)
        if (last, *kinds) in in_vain:
            return None

        def turn(cut: Cut) -> tuple[int, int, int]:
            by_group, by_network = cut.group - last.group - 1, cut.network - last.network - 1
            return cut.index, by_group % (1 + max(groups)), by_network % networks

        for cut in sorted(able, key=turn):
            if (found := completed((*chosen, cut))) is not None:
                return found
        in_vain.add((last, *kinds))
        return None

    lists = (completed((start,)) for start in layers)
    return list(dict.fromkeys(found for found in lists if found is not None))


def _may_follow(one: Cut, other: Cut) -> bool:
    return not (one.operation == "fc" and other.operation != "fc")


def _middle(distances: Tensor, members: Tensor) -> int:
    """Return the member with the least sum of distances to the others."""
    places = members.nonzero().flatten()
    return int(places[distances[places][:, places].sum(dim=0).argmin()])
