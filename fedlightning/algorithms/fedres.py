"""FedRes: a shared model and a private one predict together; the private one fits the residual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm, Weights
from fedlightning.algorithms.method import ClientHook
from fedlightning.algorithms.scaffold import ControlVariates
from fedlightning.core.batches import Batch, batch_length
from fedlightning.core.state import State, under
from fedlightning.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["FedRes", "KeptOptimizer", "ResidualPhases", "Scheme"]

Scheme = Literal["sgd", "avg", "corrected", "simultaneous"]
"""How a client trains its two models in a turn."""

_NAME = "fedres"
_OPTIMIZER = "fedres_optimizer"


class ResidualPhases(ClientHook):
    """Trains the private part and the shared rest in turns, one with the other fixed.

    A phase without anything to train, since the user has frozen it, is passed over.

    Args:
        scheme: ``sgd``, ``avg`` or ``simultaneous``; see :class:`FedRes`.
        private: The part that stays with the client.
    """

    def __init__(self, scheme: Scheme = "avg", private: str = "private") -> None:
        self.scheme: Scheme = scheme
        self.private = private

    def num_epochs(self, local_epochs: int) -> int:
        """Return those of the private part and as many of the rest."""
        return 2 * local_epochs

    def on_update_start(self, context: ClientContext) -> None:
        """Find out what can be trained in each phase."""
        private = set(context.parts().keys(self.private))
        here = [key in private for key in context.parameters]
        context.scratch[_NAME] = {"can": (any(here), not all(here)), "steps": 0, "epoch": 0}

    def on_epoch_start(self, context: ClientContext, epoch: int) -> None:
        """Begin a phase with an epoch, where phases last so long."""
        context.scratch[_NAME]["epoch"] = epoch
        if self.scheme != "simultaneous":
            self._begin(context, private=epoch < context.local_epochs)

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Take a step on the phase's model, or its share in the one step on the shared model."""
        own = context.scratch[_NAME]
        if self.scheme == "simultaneous":
            self._begin(context, private=own["steps"] % 2 == 0)
        own["steps"] += 1
        if not own["can"][0 if own["private"] else 1]:
            return None
        loss = context.gradient(batch, batch_idx)
        if self.scheme == "sgd" and not own["private"]:
            self._add(own, context.gradients(), batch_length(batch))
        else:
            context.update(batch_idx)
        return loss

    def on_epoch_end(self, context: ClientContext, epoch: int) -> None:
        """Take the one step on the shared model, along the mean over all its batches."""
        own = context.scratch[_NAME]
        if epoch + 1 == 2 * context.local_epochs and "sums" in own:
            context.set_gradients({k: g.div_(own["examples"]) for k, g in own["sums"].items()})
            context.update(0)

    def _begin(self, context: ClientContext, private: bool) -> None:
        context.scratch[_NAME]["private"] = private
        context.train_only(self.private if private else f"full - {self.private}")

    @staticmethod
    @torch.no_grad()
    def _add(own: dict[str, Any], gradients: State, examples: int) -> None:
        """Add the gradient of a batch's sum of losses."""
        if "sums" not in own:
            own["sums"] = {key: torch.zeros_like(g) for key, g in gradients.items()}
            own["examples"] = 0
        for key, gradient in gradients.items():
            own["sums"][key].add_(gradient, alpha=examples)
        own["examples"] += examples


class KeptOptimizer(ClientHook):
    """Lets the state of a client's optimizer last from one of its turns to the next.

    Momentum and the like then stay with the client; they are neither sent nor averaged.
    """

    needs_global = False
    fresh_optimizers = True  # which it then fills itself

    def on_update_start(self, context: ClientContext) -> None:
        """Load the state that the client has kept, if it has trained before."""
        kept = under(context.before, _OPTIMIZER)
        if not kept:
            return
        optimizer, keys = context.optimizer, _keys(context)
        content = optimizer.state_dict()
        content["state"] = {
            number: state for number, key in enumerate(keys) if (state := under(kept, key))
        }
        optimizer.load_state_dict(content)

    def on_update_end(self, context: ClientContext) -> None:
        """Keep the optimizer's state."""
        keys, state = _keys(context), context.optimizer.state_dict()["state"]
        for number, slots in state.items():
            for slot, value in slots.items():
                if value is None:
                    continue
                if not isinstance(value, Tensor):
                    raise ConfigError(
                        f"algorithm.keep_optimizer: {type(context.optimizer).__name__} remembers "
                        f"{slot}={value!r}, which is not a tensor; set keep_optimizer to false."
                    )
                context.keep_values(f"{_OPTIMIZER}/{keys[number]}/{slot}", value.clone())


class FedRes(Algorithm):
    r"""Federated residual learning: logits :math:`g(x; w) + h_k(x; v_k)`.

    The shared model :math:`g` has what is common, and each client's :math:`h_k`, which never leaves
    it, fits the residual. With :math:`K` the number of batches of ``federation.local_epochs``
    epochs, a client's turn is

    - ``sgd`` (FedResSGD): :math:`K` steps on :math:`v_k` with :math:`w` fixed, then *one* step on
      :math:`w`, along the mean gradient of :math:`K` batches;
    - ``avg`` (FedResAvg, option I): :math:`K` steps on :math:`v_k` with :math:`w` fixed, then
      :math:`K` steps on :math:`w` with :math:`v_k` fixed;
    - ``corrected`` (FedResAvg, option II): as ``avg``, with :math:`c_k` subtracted from each
      gradient of :math:`w`: the client's mean gradient of :math:`w` over its last turn, minus the
      mean of these over clients; 0 at first, and :math:`\sum_k c_k = 0` always;
    - ``simultaneous``: a step on :math:`v_k` and a step on :math:`w` by turns, :math:`K` of each.

    The module names its private network ``private`` (``parts = {"private": "..."}``), such as
    :class:`~fedlightning.models.ResidualMLP`; output layers that start at zero make the sum start
    neutral. The two may have learning rates of their own, as groups of the module's optimizer.
    A client that never trained has the private network as it starts, and personalization of the
    part ``private`` trains it alone. Clients that are evaluated during training are evaluated with
    the shared model; their own is what ``PersonalizationCallback`` starts from.

    Deviations: local losses are means, not sums divided by the number of clients; all clients start
    from one shared model, with torch's initial weights. In ``corrected`` the mean over
    clients goes down and the change of a client's mean gradient up, as in SCAFFOLD, which keeps
    :math:`\sum_k c_k = 0` where not all clients take part; in that form a client keeps its gradient
    and the server keeps nothing per client.

    What can be said: these are FedRes's schemes after the authors' published code, checked against
    numbers computed with it. The paper's results are not claimed. In small experiments it helped
    where the meaning of classes differs between clients, each has few examples, and :math:`h` is
    smaller than :math:`g`; under plain label skew it did not.

    Args:
        scheme: How the two models are trained.
        private: The part that stays with each client.
        keep_optimizer: Whether clients keep their optimizers' states.
        weights: Weights of the mean; the published ones are uniform.
        **choices: Those of :class:`Algorithm`.

    Raises:
        ConfigError: If the scheme is unknown.

    Example:
        >>> FedRes("corrected").share
        'full - private'
        >>> FedRes("svrg")
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: algorithm.scheme must be one of sgd, avg, corrected, ...

    Source:
        Agarwal, Langford, Wei. Federated Residual Learning. 2020. https://arxiv.org/abs/2003.12880
    """

    def __init__(
        self,
        scheme: Scheme = "avg",
        private: str = "private",
        keep_optimizer: bool = False,
        weights: Weights | None = "uniform",
        **choices: Any,
    ) -> None:
        if scheme not in get_args(Scheme):
            raise ConfigError(
                f"algorithm.scheme must be one of {', '.join(get_args(Scheme))}, "
                f"got {scheme!r}.{did_you_mean(str(scheme), get_args(Scheme))}"
            )
        phases: Scheme = "avg" if scheme == "corrected" else scheme
        hooks: list[ClientHook] = [ResidualPhases(phases, private)]
        hooks += [ControlVariates()] if scheme == "corrected" else []
        hooks += [KeptOptimizer()] if keep_optimizer else []
        super().__init__(
            train="full",
            share=f"full - {private}",
            keep=True,
            weights=weights,
            local=hooks,
            **choices,
        )
        self.scheme = scheme


def _keys(context: ClientContext) -> list[str]:
    """Return the keys of the optimizer's parameters, in the order of its state dict."""
    names = {id(p): key for key, p in context.module.named_parameters()}
    groups = context.optimizer.param_groups
    return [names[id(p)] for group in groups for p in group["params"]]
