"""Eight bits an entry: linear quantization with one step for each tensor."""

from __future__ import annotations

from fedlightning.core.state import State
from fedlightning.federation.uplink.compression import Compression
from fedlightning.federation.uplink.encoding import Frame, levels

__all__ = ["Int8"]


class Int8(Compression):
    r"""Send each entry as a whole number of steps, in one byte.

    .. math:: D(p)_j = s \cdot \text{round}(p_j / s), \quad s = \max_j |p_j| / 127

    with one step :math:`s` for each tensor. The paper rounds at random, which is right on average;
    this rounds to the nearest (halves to even), which needs no random numbers, errs by half a step
    at most, and is made right in time by error feedback.

    Args:
        error_feedback: Whether clients add what was rounded off to their next update.

    Source:
        Alistarh, Grubic, Li, Tomioka, Vojnovic. QSGD: Communication-Efficient SGD via Gradient
        Quantization and Encoding. NeurIPS 2017. https://arxiv.org/abs/1610.02132

    Example:
        >>> import torch
        >>> Int8().compress({"w": torch.tensor([12.7, 0.26, -0.04])}).state
        {'w': tensor([12.7000,  0.3000,  0.0000])}
    """

    def frames(self, delta: State) -> list[Frame]:
        """Return the tensors as frames."""
        return [levels(key, value) for key, value in delta.items()]
