"""How alike two representations, or two predictions, of the same examples are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["layer_distances", "linear_cka", "mean_cosine"]


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Return the linear centred kernel alignment of two representations.

    :math:`\langle K_x, K_y \rangle / (\|K_x\| \|K_y\|)` with the centred Gram matrices :math:`K` of
    the examples. It is 1 for a representation and itself, whatever its scale and rotation, and NaN
    where one of the two is the same for all examples.

    Args:
        x: Shape (n, p).
        y: Shape (n, q), of the same n examples.

    Returns:
        A scalar in [0, 1], float64.

    Source:
        Kornblith, Norouzi, Lee, Hinton. Similarity of Neural Network Representations Revisited.
        ICML 2019. https://arxiv.org/abs/1905.00414

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
        >>> round(linear_cka(x, 3 * x.flip(1) + 5).item(), 6)
        1.0
    """
    return _similarities([x, y])[0, 1]


def layer_distances(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    r"""Return the distances of all pairs of layers.

    :math:`1 / (\mathrm{CKA}(in_i, in_j) + \mathrm{CKA}(out_i, out_j))`, at least 0.5. It is
    infinite where the sum is zero or unknown.

    Args:
        inputs: What each layer gets of the same n examples, shapes (n, p).
        outputs: What each makes of it, shapes (n, q).

    Returns:
        Shape (layers, layers), float64.
    """
    total = _similarities(inputs) + _similarities(outputs)
    return torch.where(total > 0, 1 / total, torch.inf)


def mean_cosine(logits: Tensor, others: Tensor) -> Tensor:
    """Return the mean over examples of the cosine between two predictions.

    Args:
        logits: Shape (n, C).
        others: Shape (n, C), or (m, n, C) for m predictions.

    Returns:
        A scalar, or shape (m,).

    Example:
        >>> mean_cosine(torch.eye(2), torch.stack([torch.eye(2), -2 * torch.eye(2)]))
        tensor([ 1., -1.])
    """
    return F.cosine_similarity(logits.expand_as(others), others, dim=-1).mean(dim=-1)


def _similarities(representations: Sequence[Tensor]) -> Tensor:
    """Return the alignment of all pairs."""
    grams = []
    for values in representations:
        centred = values.double() - values.double().mean(dim=0)
        gram = centred @ centred.T
        grams.append((gram / torch.linalg.matrix_norm(gram)).flatten())
    stacked = torch.stack(grams)
    return stacked @ stacked.T
