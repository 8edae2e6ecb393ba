"""FedRoD: one body, a shared head and a private head per client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.batches import Batch, class_labels
from fedlightning.core.state import State, under

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["FedRoD", "TwoHeads"]

_NAME = "fedrod"


class TwoHeads(ClientHook):
    """Trains the shared head with a balanced loss, and on its features one of the client's own.

    The loss is balanced by adding the logarithm of the client's class frequencies to the shared
    head's logits while it trains, so the module's own training step computes it.
    """

    needs_head = True
    personal_model = True

    def on_update_start(self, context: ClientContext) -> None:
        """Take up the client's own head, zero at first, and its class frequencies."""
        head = context.linear_head()
        keys = context.head_keys()
        own = context.kept(_NAME)
        values = [own.get(key, torch.zeros_like(context.received[key])) for key in keys]
        weights = [value.clone().requires_grad_() for value in values]
        optimizer = context.optimizer_like(dict(zip(keys, weights, strict=True)))
        counts = context.class_counts(head.out_features).to(head.weight.device)
        frequencies = (counts / counts.sum()).log().to(head.weight.dtype)
        context.scratch[_NAME] = head, keys, weights, optimizer, frequencies

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Move the shared model by the balanced loss, the own head by the plain one."""
        head, _, own, optimizer, frequencies = context.scratch[_NAME]
        seen: list[tuple[Tensor, Tensor]] = []

        def balance(_: Any, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
            seen.append((inputs[0].detach(), logits.detach()))
            balanced: Tensor = logits + frequencies
            return balanced

        with context.hooked(head, balance):
            loss = context.gradient(batch, batch_idx)
        if seen:
            features, logits = seen[-1]
            features, logits = features.to(own[0].dtype), logits.to(own[0].dtype)
            own_loss = F.cross_entropy(
                logits + F.linear(features, *own), class_labels(batch, "FedRoD")
            )
            own_loss.backward()  # type: ignore[no-untyped-call]
            context.step_optimizer(optimizer)
            optimizer.zero_grad()
        context.update(batch_idx)
        return loss

    def on_update_end(self, context: ClientContext) -> None:
        """Keep the client's own head."""
        _, keys, own, _, _ = context.scratch[_NAME]
        context.keep(_NAME, {key: value.detach() for key, value in zip(keys, own, strict=True)})

    def personal(self, kept: Mapping[str, Tensor], model: State) -> State:
        """Return the sum of both heads: their logits add up."""
        own = under(kept, _NAME)
        return {key: value + model[key].to(value.device) for key, value in own.items()}


class FedRoD(Algorithm):
    r"""Federated robust decoupling.

    Body and shared head are trained with the balanced softmax loss, whose logits are
    :math:`g_c(x) + \log n_{i,c}`, and averaged as in FedAvg. A client's own head :math:`h_i`, zero
    at first, is trained with the plain loss of the logits :math:`g(x) + h_i(z)` on features
    :math:`z` that it does not move. For classification with one linear head; a client's model is
    the network with the sum of both heads.

    Args:
        **choices: Those of :class:`Algorithm`. The mean weighs by examples, as the paper's
            formula does.

    Source:
        Chen, Chao. On Bridging Generic and Personalized Federated Learning for Image
        Classification. ICLR 2022. https://arxiv.org/abs/2107.00778
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(train="full", share="full", local=[TwoHeads()], **choices)
