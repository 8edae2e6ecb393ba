"""Clipping and noise at the client: how far an update reaches, and how much it gives away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedlightning.core.messages import ClientUpdate
from fedlightning.core.state import State
from fedlightning.core.validation import check_number
from fedlightning.errors import ConfigError
from fedlightning.federation.uplink.stage import UplinkContext, UplinkStage
from fedlightning.privacy.mechanism import MAX_NORM, WITHIN

__all__ = ["ClipNorm", "GaussianNoise", "PrivateClip"]


class ClipNorm(UplinkStage):
    r"""Scale an update down to a largest L2 norm.

    .. math:: \Delta \leftarrow \min\left(1, \frac{C}{\lVert \Delta \rVert}\right) \Delta

    where :math:`\Delta` is the whole message: the change of all shared parameters and all extras,
    as one vector, in float64. Buffers are sent as they are.

    Args:
        max_norm: The largest norm :math:`C`, > 0.

    Raises:
        ConfigError: If it is not a finite number > 0.

    Source:
        McMahan, Ramage, Talwar, Zhang. Learning Differentially Private Recurrent Language Models.
        ICLR 2018. https://arxiv.org/abs/1710.06963

    Example:
        >>> ClipNorm(max_norm=1.0)
        ClipNorm(max_norm=1.0)
    """

    def __init__(self, max_norm: float) -> None:
        check_number("federation.uplink.max_norm", max_norm, above=0)
        self.max_norm = max_norm

    @torch.no_grad()
    def send(self, update: ClientUpdate, context: UplinkContext) -> ClientUpdate:
        """Return the clipped update.

        Raises:
            ConfigError: If it has an extra of integers, which cannot be scaled.
        """
        return _clipped(self.name, update, context, self.max_norm)[0]


class PrivateClip(UplinkStage):
    """Scale an update down to a norm that the server sends, and say whether that was needed.

    The client half of :class:`~fedlightning.privacy.AdaptiveClipping`; ``federation.privacy`` adds
    it.
    """

    @torch.no_grad()
    def send(self, update: ClientUpdate, context: UplinkContext) -> ClientUpdate:
        """Return the clipped update, with one more extra: 1 if it was within the norm, else 0.

        Raises:
            ConfigError: If it has an extra of integers, which cannot be scaled.
        """
        max_norm = float(context.sent_along[MAX_NORM])
        clipped, norm = _clipped(self.name, update, context, max_norm)
        within = torch.tensor(float(norm <= max_norm))
        return replace(
            clipped,
            extras={**clipped.extras, WITHIN: within},
            bytes_up=clipped.bytes_up + within.element_size(),
        )


class GaussianNoise(UplinkStage):
    r"""Add independent noise :math:`\mathcal N(0, \sigma^2)` to every entry of an update.

    To all shared parameters and all extras; buffers are sent as they are. The noise follows from
    the run's seed, so a run can be repeated; it is a simulation of noise and no protection against
    an observer who knows the seed.

    Args:
        std: The standard deviation :math:`\sigma`, >= 0.

    Raises:
        ConfigError: If it is not a finite number >= 0.

    Example:
        >>> GaussianNoise(std=0.01)
        GaussianNoise(std=0.01)
    """

    def __init__(self, std: float) -> None:
        check_number("federation.uplink.std", std, at_least=0)
        self.std = std

    @torch.no_grad()
    def send(self, update: ClientUpdate, context: UplinkContext) -> ClientUpdate:
        """Return the update with noise.

        Raises:
            ConfigError: If it has an extra of integers.
        """
        _require_floats(self.name, update.extras)
        if not self.std:
            return update
        generator = torch.Generator().manual_seed(context.key.integer())

        def noisy(value: Tensor) -> Tensor:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            return value + (self.std * noise).to(value)

        state = {
            key: noisy(value) if key in context.parameters else value
            for key, value in update.state.items()
        }
        extras = {key: noisy(value) for key, value in update.extras.items()}
        return replace(update, state=state, extras=extras)


def _clipped(
    stage: str, update: ClientUpdate, context: UplinkContext, max_norm: float
) -> tuple[ClientUpdate, float]:
    """Return an update scaled down to a norm, and the norm that it had."""
    _require_floats(stage, update.extras)
    changes = _changes(update, context)
    parts = [*changes.values(), *update.extras.values()]
    squares = [value.double().square().sum() for value in parts]
    norm = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    if norm <= max_norm:
        return update, norm
    scale = max_norm / norm
    received = context.received
    state = {key: received[key] + scale * change for key, change in changes.items()}
    extras = {key: scale * value for key, value in update.extras.items()}
    return replace(update, state={**update.state, **state}, extras=extras), norm


def _changes(update: ClientUpdate, context: UplinkContext) -> State:
    """Return by how much the update's parameters have moved."""
    return {
        key: value - context.received[key]
        for key, value in update.state.items()
        if key in context.parameters
    }


def _require_floats(stage: str, extras: Mapping[str, Tensor]) -> None:
    for key, value in extras.items():
        if not value.is_floating_point():
            raise ConfigError(
                f"federation.uplink: {stage} cannot treat {key!r}, which is {value.dtype}; leave "
                "the stage out, or send floating-point numbers."
            )
