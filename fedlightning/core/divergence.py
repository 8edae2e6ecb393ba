"""How far two predictions of class probabilities are apart."""

from __future__ import annotations

from torch import Tensor

__all__ = ["softmax_divergence"]


def softmax_divergence(logits: Tensor, others: Tensor) -> Tensor:
    r"""Return :math:`\mathrm{KL}(p \,\|\, q)` with the softmax of both, its mean over examples.

    Args:
        logits: Logits of :math:`p`, shape (n, C).
        others: Logits of :math:`q`, shape (n, C).

    Returns:
        In nats, >= 0, a scalar.

    Example:
        >>> import torch
        >>> certain, unsure = torch.tensor([[99.0, 0.0]]), torch.zeros(1, 2)
        >>> round(softmax_divergence(certain, unsure).item(), 4)  # log 2
        0.6931
    """
    log_p, log_q = logits.log_softmax(dim=-1), others.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
