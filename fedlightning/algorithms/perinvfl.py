"""PerInvFL: an invariant shared model, and a personal one that stays near to its features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.batches import Batch
from fedlightning.core.optimizers import FollowingOptimizer
from fedlightning.core.state import State, under
from fedlightning.core.validation import check_integer, check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["InvariantAndPersonal", "PerInvFL", "contrast", "invariance_penalty"]

_PERSONAL, _HELPER, _OPTIMIZER = "perinvfl", "perinvfl:helper", "perinvfl:optimizer"


def invariance_penalty(loss: Tensor, scale: Tensor) -> Tensor:
    r"""Return :math:`J = (\partial \ell / \partial s)^2`, which has gradients itself.

    Args:
        loss: The mean loss of a batch whose logits were multiplied by ``scale``.
        scale: s, a tensor of one number, 1.

    Example:
        >>> scale = torch.ones((), requires_grad=True)
        >>> loss = F.cross_entropy(scale * torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        >>> round(float(invariance_penalty(loss, scale).detach()), 5)
        0.05684
    """
    (slope,) = torch.autograd.grad(loss, scale, create_graph=True)
    return slope.square()


def contrast(z: Tensor, near: Tensor, far: Tensor, push: float = 0.2) -> Tensor:
    r"""Return :math:`-\log (e^{\cos(z, z^+)} / (e^{\cos(z, z^+)} + b e^{\cos(z, z^-)}))`, the mean.

    Args:
        z: Features, shape (n, d).
        near: :math:`z^+`, to which they are pulled, likewise.
        far: :math:`z^-`, from which they are pushed, likewise.
        push: b, above 0.

    Example:
        >>> z = torch.tensor([[1.0, 0.0]])
        >>> round(float(contrast(z, near=z, far=torch.tensor([[0.0, 1.0]]))), 5)
        0.071
    """
    pull, away = (F.cosine_similarity(z, other, dim=-1) for other in (near, far))
    return F.softplus(away - pull + math.log(push)).mean()


class InvariantAndPersonal(ClientHook):
    r"""Trains the shared model w, a private helper e and a personal model p on the same batches.

    Args:
        strength: :math:`\lambda`, weight of the contrastive term of p.
        push: b, weight of its negative.
        l2: Weight of the squared norm of all weights, in the losses of p and w.
        inner_steps: K, steps of p in every local step; with 0 there are neither p nor e.
        personal_lr: Learning rate of p.
        penalty: a, weight of the invariance penalty, from ``anneal_round`` on.
        early_penalty: a before.
        anneal_round: The round, from 0, in which it changes.
    """

    needs_head = True
    personal_model = True

    def __init__(
        self,
        strength: float,
        push: float,
        l2: float,
        inner_steps: int,
        personal_lr: float,
        penalty: float,
        early_penalty: float,
        anneal_round: int,
    ) -> None:
        check_number("algorithm.strength", strength, at_least=0)
        check_number("algorithm.push", push, above=0)
        check_number("algorithm.l2", l2, at_least=0)
        check_integer("algorithm.inner_steps", inner_steps, at_least=0)
        check_number("algorithm.personal_lr", personal_lr, above=0)
        check_number("algorithm.penalty", penalty, at_least=0)
        check_number("algorithm.early_penalty", early_penalty, at_least=0)
        check_integer("algorithm.anneal_round", anneal_round, at_least=0)
        self.strength = strength
        self.push = push
        self.l2 = l2
        self.inner_steps = inner_steps
        self.personal_lr = personal_lr
        self.penalty = penalty
        self.early_penalty = early_penalty
        self.anneal_round = anneal_round

    def on_update_start(self, context: ClientContext) -> None:
        """Take up the helper, at first a copy of the shared model, and its optimizer."""
        layer = context.head_name()
        context.watch(layer, inputs=True)
        penalty = self.penalty if context.version >= self.anneal_round else self.early_penalty
        own: _Private | None = None
        if self.inner_steps:
            helper = _Model.of(context, context.kept(_HELPER) or context.trained_state())
            optimizer = context.optimizer_like(helper.weights)
            _restore(optimizer, helper.weights, under(context.before, _OPTIMIZER))
            own = _Private(helper, optimizer, _Model({}, {}))
        context.scratch[_PERSONAL] = _Turn(layer, penalty, own)

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Move p away from w, then w, then e; random numbers are those that w alone would draw."""
        turn: _Turn = context.scratch[_PERSONAL]
        if turn.own is not None:
            with context.replay_rng(), context.no_logging():
                self._personal_steps(context, turn, turn.own, batch, batch_idx)
        turn.moving = "shared"
        with self._scaling(context, turn):
            loss = context.gradient(batch, batch_idx)
        context.update(batch_idx)
        if turn.own is not None:
            turn.moving = "helper"
            with context.replay_rng(), context.no_logging():
                self._step(context, turn.own.helper, turn.own.optimizer, batch, batch_idx)
        return loss

    def _scaling(self, context: ClientContext, turn: _Turn) -> AbstractContextManager[None]:
        """Multiply logits by a one whose gradient is asked for, if there is a penalty."""

        def scaled(layer: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
            kind = torch.promote_types(logits.dtype, torch.float32)
            turn.scale = torch.ones((), dtype=kind, device=logits.device, requires_grad=True)
            return logits * turn.scale

        return context.hooked(context.layer(turn.layer), scaled) if turn.penalty else nullcontext()

    def on_loss(self, context: ClientContext, batch: Batch, loss: Tensor) -> Tensor:
        """Add the terms of the model that is moving."""
        turn: _Turn = context.scratch[_PERSONAL]
        if turn.moving == "helper":
            return loss
        if turn.moving == "shared" and turn.penalty:
            loss = loss + turn.penalty * invariance_penalty(loss, turn.scale)
        if self.l2:
            squares = [parameter.square().sum() for parameter in context.parameters.values()]
            loss = loss + self.l2 * torch.stack(squares).sum()
        if turn.moving == "shared":
            return loss / turn.penalty if turn.penalty > 1 else loss
        if self.strength:
            z = context.features(turn.layer).flatten(1)
            loss = loss + self.strength * contrast(z, turn.near, turn.far, self.push)
        return loss

    def on_update_end(self, context: ClientContext) -> None:
        """Keep helper, its optimizer and the personal model."""
        own: _Private | None = context.scratch[_PERSONAL].own
        if own is not None:
            context.keep(_HELPER, own.helper.state())
            context.keep(_OPTIMIZER, _memory(own.optimizer, own.helper.weights))
            context.keep(_PERSONAL, own.personal.state())

    def personal(self, kept: Mapping[str, Tensor], model: State) -> State:
        """Return the personal model as it was at the end of the client's last update."""
        return under(kept, _PERSONAL)

    def _personal_steps(
        self, context: ClientContext, turn: _Turn, own: _Private, batch: Batch, batch_idx: int
    ) -> None:
        turn.moving = "personal"
        if self.strength:
            near = context.forward_with({}, batch[0], layer=turn.layer)
            far = context.forward_with(own.helper.state(), batch[0], layer=turn.layer)
            turn.near, turn.far = near.flatten(1), far.flatten(1)
        own.personal = _Model.of(context, context.trained_state())
        optimizer = context.optimizer_like(own.personal.weights, self.personal_lr)
        for _ in range(self.inner_steps):
            self._step(context, own.personal, optimizer, batch, batch_idx)

    def _step(
        self,
        context: ClientContext,
        model: _Model,
        optimizer: FollowingOptimizer,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Take a step of a model that is not the module's."""
        with context.swapped_weights(model.weights, model.buffers):
            context.gradient(batch, batch_idx)
            slopes = context.gradients()
        for key, weight in model.weights.items():
            weight.grad = slopes.get(key)
        context.step_optimizer(optimizer)
        optimizer.zero_grad()


@dataclass
class _Model:
    """A model beside the module: its own weights, its own statistics."""

    weights: dict[str, Tensor]
    buffers: State

    @classmethod
    def of(cls, context: ClientContext, state: Mapping[str, Tensor]) -> _Model:
        weights = {key: state[key].clone().requires_grad_() for key in context.parameters}
        buffers = {key: value.clone() for key, value in state.items() if key not in weights}
        return cls(weights, buffers)

    def state(self) -> State:
        return {**{key: w.detach() for key, w in self.weights.items()}, **self.buffers}


@dataclass
class _Private:
    """The models that stay with the client."""

    helper: _Model
    optimizer: FollowingOptimizer
    personal: _Model


@dataclass
class _Turn:
    """What one client update has beside the module."""

    layer: str
    penalty: float
    own: _Private | None
    moving: str = "shared"
    scale: Tensor = field(default_factory=partial(torch.ones, ()))
    near: Tensor = field(default_factory=partial(torch.ones, ()))
    far: Tensor = field(default_factory=partial(torch.ones, ()))


def _memory(optimizer: FollowingOptimizer, weights: Mapping[str, Tensor]) -> State:
    """Return what an optimizer remembers of weights, by the name of the slot and their key."""
    states = optimizer.optimizer.state
    return {
        f"{slot}/{key}": value
        for key, weight in weights.items()
        for slot, value in states.get(weight, {}).items()
        if isinstance(value, Tensor)
    }


def _restore(
    optimizer: FollowingOptimizer, weights: Mapping[str, Tensor], memory: Mapping[str, Tensor]
) -> None:
    for name, value in memory.items():
        slot, _, key = name.partition("/")
        if (weight := weights.get(key)) is not None:
            device = value.device if value.ndim == 0 else weight.device  # of steps, where it was
            optimizer.optimizer.state[weight][slot] = value.to(device, copy=True)


class PerInvFL(Algorithm):
    r"""Personalized invariance.

    A client has three models of one architecture, each features z and a head: w, the shared one; e,
    a helper that is plainly trained on the client's data and never sent; p, its personal one. A
    local step, on one batch:

    1. :math:`p \leftarrow w`, then K steps of p, with an optimizer of its own, on
       :math:`\ell(p) + c \|p\|^2 + \lambda\, \overline{-\log (e^{\cos(z, z^+)} / (e^{\cos(z, z^+)}
       + b e^{\cos(z, z^-)}))}`. The features :math:`z^+` of w pull, :math:`z^-` of e push; both are
       constants.
    2. A step of w on :math:`(\ell(w) + c \|w\|^2 + a J) / \max(a, 1)`, with the invariance penalty
       :math:`J = (\partial \ell(s \cdot \text{logits}) / \partial s)^2` at s = 1. The client is one
       environment.
    3. A step of e on :math:`\ell(e)`.

    w is averaged. A client keeps e and what its optimizer remembers, and p for evaluation, which is
    what :class:`~fedlightning.PersonalizationCallback` starts from; w is the global model. All
    three take the module's own optimizer, each its own copy, p with its own learning rate; the
    authors' is Adam with 5e-4 and 1e-4. Statistics of BatchNorm are each model's own.

    An invariant shared model with a contrastive personal term, following the authors' published
    code, but for its reset of p. There p is set back to w before each of the K steps, so that the
    pull, whose gradient is 0 at :math:`z = z^+`, never acts; here p goes on. Other deviations: one
    optimizer for each model, where w and e share one there; a = 1e4 by default, where 1e9 leaves
    the loss itself a weight of 1e-9; only the clients of a cohort train. That personal models
    generalise better than w is not claimed: in our experiments they gave out-of-distribution
    accuracy for accuracy on their own distribution.

    It trains on a batch in its own way and gives clients models of their own, so methods that do
    either are refused.

    Args:
        strength: :math:`\lambda`.
        push: b.
        l2: c.
        inner_steps: K. With 0 clients have neither personal models nor helpers.
        personal_lr: Learning rate of p.
        penalty: a from ``anneal_round`` on; 1e2 to 1e4 is enough.
        early_penalty: a before it.
        anneal_round: Round, from 0.
        **choices: Those of :class:`Algorithm`.

    Raises:
        ConfigError: If a value is out of its range.

    Source:
        Tang, Guo, Zhang. Exploiting Personalized Invariance for Better Out-of-distribution
        Generalization in Federated Learning. 2022. https://arxiv.org/abs/2211.11243. The penalty:
        Arjovsky, Bottou, Gulrajani, Lopez-Paz. Invariant Risk Minimization. 2019.
        https://arxiv.org/abs/1907.02893
    """

    def __init__(
        self,
        strength: float = 1.0,
        push: float = 0.2,
        l2: float = 0.0011,
        inner_steps: int = 2,
        personal_lr: float = 1e-4,
        penalty: float = 1e4,
        early_penalty: float = 1.0,
        anneal_round: int = 12,
        **choices: Any,
    ) -> None:
        hook = InvariantAndPersonal(
            strength, push, l2, inner_steps, personal_lr, penalty, early_penalty, anneal_round
        )
        super().__init__(local=[hook], **choices)
