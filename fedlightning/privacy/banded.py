"""Noise that is correlated between rounds, so that less of it is left in their sum."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from fedlightning.core.state import State

__all__ = ["BandedNoise"]


class BandedNoise:
    r"""Banded matrix factorisation: the noise of a round takes back some of the rounds' before.

    The server adds :math:`\zeta = C^{-1} Z` instead of :math:`Z`, row by row:

    .. math:: \zeta_t = \frac{1}{c_0} \Big( Z_t - \sum_{j=1}^{b-1} c_j\,\zeta_{t-j} \Big)

    :math:`C` is lower triangular and Toeplitz with the first :math:`b` coefficients of the square
    root of the matrix of prefix sums, :math:`c_j \propto \binom{2j}{j} 4^{-j}`, scaled to
    :math:`\lVert c \rVert = 1`. Two participations of a client that are :math:`b` rounds apart
    touch different rows of :math:`C X`, so each costs what one costs with independent noise. The
    model, which is a sum of rounds, carries less noise.

    Args:
        bands: :math:`b`; 1 is independent noise.

    Source:
        Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu. (Amplified) Banded Matrix
        Factorization: A unified approach to private training. NeurIPS 2023.
        https://arxiv.org/abs/2306.08153. The coefficients: Kalinin, Lampert. Banded Square Root
        Matrix Factorization for Differentially Private Model Training. NeurIPS 2024.
        https://arxiv.org/abs/2405.13763

    Example:
        >>> [round(c, 4) for c in BandedNoise(3).coefficients]
        [0.848, 0.424, 0.318]
    """

    def __init__(self, bands: int) -> None:
        root = [math.comb(2 * j, j) / 4**j for j in range(bands)]
        norm = math.hypot(*root)
        self.coefficients = tuple(c / norm for c in root)

    def next(self, key: str, fresh: Tensor, before: Mapping[str, Tensor]) -> Tensor:
        r"""Return :math:`\zeta_t` of one tensor.

        Args:
            key: Its key.
            fresh: :math:`Z_t`.
            before: Earlier noises, as :meth:`remembered` names them.
        """
        total: Tensor = fresh
        for j, c in enumerate(self.coefficients[1:], start=1):
            if (earlier := before.get(_name(j, key))) is not None:
                total = total - c * earlier.to(total)
        return total.div(self.coefficients[0])

    def remembered(self, noises: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> State:
        """Return the noises that the next round needs: those of the last ``bands - 1`` rounds.

        Args:
            noises: Those of this round, by key.
            before: Those that this round has needed.
        """
        kept: State = {}
        for key, noise in noises.items():
            for j in range(1, len(self.coefficients)):
                earlier = noise if j == 1 else before.get(_name(j - 1, key))
                if earlier is not None:
                    kept[_name(j, key)] = earlier.cpu()
        return kept


def _name(rounds_ago: int, key: str) -> str:
    return f"noise/{rounds_ago}/{key}"
