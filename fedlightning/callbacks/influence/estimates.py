"""Fed-Influence's recursion: how the global model would differ without a client, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fedlightning.core.state import State, widest_float

__all__ = ["Estimates", "Method", "Truncation"]

Method = Literal["exact", "layerwise", "fisher", "truncated"]
"""What carries an estimate through a client's local steps: products with the Hessian, with its
diagonal blocks, or with a Fisher approximation of these; or nothing does."""

Truncation = Literal["layer", "client", "never"]
"""Where a layer whose estimate grows is cut off: for good, at the clients that let it, nowhere."""

_ROUNDING = 64
"""Norms that differ by as many units in the last place count as equal."""


class Estimates:
    r"""One vector per examined client: estimated (model without it) - model.

    With :math:`C_t` the clients of round t, :math:`n_k` their weights and N(A) the sum of weights,

    .. math:: \epsilon_t = \sum_{k \in C_t \setminus c} \frac{n_k}{N(C_t \setminus c)}
        \prod_i (I - \eta H^k_{t,i})\, \epsilon_{t-1} + [w_t(C_t \setminus c) - w_t]

    where :math:`w_t(A)` is the mean of the models that the clients A have sent. For a plain
    weighted mean the bracket is :math:`\frac{n_c}{N(C_t \setminus c)} (w_t - w^c_t)`. A round of
    which nobody but c is left would be skipped:
    :math:`\epsilon_t = \epsilon_{t-1} + w_{t-1} - w_t`.

    Args:
        clients: The examined clients.
        method: What carries an estimate through local steps.
        truncation: Where a layer (a parameter tensor) is cut off, so that the bracket alone counts
            from that round on: ``layer``, if its propagated part would be longer than the estimate
            itself; ``client`` leaves out the terms of those clients alone that make it longer.

    Attributes:
        values: The estimates, by client; those of clients that were in no round are zero, and
            absent.
        dropped: What is cut off, by client: layers, each with the client whose term is left out,
            or with -1 for all.
        turns: In how many rounds each client took part.
        rounds: Number of rounds so far.
    """

    def __init__(
        self, clients: Sequence[int], method: Method = "exact", truncation: Truncation = "never"
    ) -> None:
        self.clients = tuple(clients)
        self.method = method
        self.truncation = truncation
        self.values: dict[int, State] = {}
        self.dropped: dict[int, set[tuple[str, int]]] = {}
        self.turns: dict[int, int] = dict.fromkeys(self.clients, 0)
        self.rounds = 0
        self._start: State = {}
        self._weights: dict[int, float] = {}
        self._sums: dict[int, State] = {}
        self._own: dict[int, State] = {}

    def start_round(self, model: Mapping[str, Tensor]) -> None:
        """Begin a round, or begin it again.

        Args:
            model: The parameters that clients start from.
        """
        self._start = {key: value.detach().clone() for key, value in model.items()}
        self._weights, self._sums, self._own = {}, {}, {}

    def layout(self, client: int) -> dict[int, tuple[str, ...]]:
        """Return which layers of which estimates a client carries through its steps."""
        if self.method == "truncated":
            return {}
        carried: dict[int, tuple[str, ...]] = {}
        for examined, value in self.values.items():
            cut = self.dropped.get(examined, set())
            keys = tuple(k for k in value if (k, -1) not in cut and (k, client) not in cut)
            if keys and examined != client:
                carried[examined] = keys
        return carried

    def directions(self, client: int) -> dict[int, State]:
        """Return copies of the estimates that a client carries through its steps."""
        return {
            examined: {key: self.values[examined][key].clone() for key in keys}
            for examined, keys in self.layout(client).items()
        }

    def add(
        self,
        client: int,
        weight: float,
        carried: Mapping[int, Mapping[str, Tensor]],
        model: Mapping[str, Tensor],
    ) -> None:
        """Take in a client's update, in the order of aggregation.

        Args:
            client: The client.
            weight: Its weight in the mean.
            carried: What :meth:`directions` has become in its steps.
            model: The parameters that it sends; of a client that is not examined, nothing.
        """
        self._weights[client] = weight
        if client in self.turns:
            self._own[client] = {key: value.detach().clone() for key, value in model.items()}
        for examined, state in carried.items():
            sums = self._sums.setdefault(examined, {})
            for key, value in state.items():
                if self.truncation == "client" and self._grows(examined, key, value):
                    self._cut(examined, key, client)
                    continue
                term = value.to(_wide(value)) * weight
                sums[key] = sums[key] + term if key in sums else term

    def finish_round(self, model: Mapping[str, Tensor]) -> None:
        """Take the step of the recursion.

        Args:
            model: The parameters of the new global model.
        """
        values = {client: self._after(client, model) for client in self.clients}
        self.values = {client: value for client, value in values.items() if value}
        for client in self._weights:
            if client in self.turns:
                self.turns[client] += 1
        self.rounds += 1
        self._start, self._weights, self._sums, self._own = {}, {}, {}, {}

    def value(self, client: int, model: Mapping[str, Tensor]) -> State:
        """Return a client's estimate, zero if it has none; shapes are those of the model."""
        known = self.values.get(client, {})
        return {key: known.get(key, torch.zeros_like(value)) for key, value in model.items()}

    def _after(self, client: int, model: Mapping[str, Tensor]) -> State:
        """Return a client's estimate after the round; empty if it is still zero."""
        before, takes_part = self.values.get(client, {}), client in self._weights
        if not self._weights or not (before or takes_part):
            return before
        rest = sum(weight for other, weight in self._weights.items() if other != client)
        after: State = {}
        for key, now in model.items():
            if not rest:
                wide = self._start[key].to(_wide(now)) - now
                carried = before[key] + wide if key in before and self._propagates else wide
            else:
                carried = self._carried(client, key, now, rest)
                if takes_part:
                    own = self._own[client][key]
                    carried = carried + (now.to(_wide(now)) - own) * (self._weights[client] / rest)
            after[key] = carried.to(now.dtype)
        return after

    @property
    def _propagates(self) -> bool:
        return self.method != "truncated"

    def _carried(self, client: int, key: str, like: Tensor, rest: float) -> Tensor:
        """Return a layer of the propagated part, after the test whether it is cut off."""
        total = self._sums.get(client, {}).get(key)
        if total is None:
            return torch.zeros_like(like, dtype=_wide(like))
        if self.truncation == "layer" and self._grows(client, key, total / rest):
            self._cut(client, key, -1)
            return torch.zeros_like(total)
        return total / rest

    def _grows(self, client: int, key: str, after: Tensor) -> bool:
        before = self.values[client][key]
        slack = 1 + _ROUNDING * torch.finfo(before.dtype).eps
        return _norm(after) > slack * _norm(before)

    def _cut(self, client: int, key: str, at: int) -> None:
        self.dropped.setdefault(client, set()).add((key, at))

    # -- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two rounds as numbers, texts, lists, dicts and tensors."""
        return {
            "rounds": self.rounds,
            "turns": dict(self.turns),
            "values": {
                client: {key: value.cpu() for key, value in state.items()}
                for client, state in self.values.items()
            },
            "dropped": {client: sorted(cut) for client, cut in self.dropped.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None = None) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.rounds = state["rounds"]
        self.turns = dict(state["turns"])
        self.values = {
            client: {key: tensor.to(device) for key, tensor in value.items()}
            for client, value in state["values"].items()
        }
        self.dropped = {
            client: {(key, at) for key, at in cut} for client, cut in state["dropped"].items()
        }


def _wide(value: Tensor) -> torch.dtype:
    return widest_float(value.device)


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.to(_wide(value))))
