"""Whether a network in eval mode makes of each example what is in that example alone.

Then it does not matter which examples share a forward pass.
"""

from __future__ import annotations

import pytorch_lightning as pl
from torch import nn

from fedlightning.core.overrides import overrides
from fedlightning.models.base import FederatedModule

__all__ = ["doubt", "watched"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ONE_BY_ONE: tuple[type[nn.Module], ...] = (
    nn.Sequential, nn.Identity, nn.Linear,
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    *_BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish,
)  # fmt: skip
_OURS = "fedlightning.models."
_TORCHVISION = ("torchvision.models.", "torchvision.ops.")


def doubt(module: pl.LightningModule, head: bool = False) -> str | None:
    """Return what in a network may look from one example at another, for all we know, or ``None``.

    Args:
        module: The model.
        head: Whether its head is looked at, too, rather than its body alone.
    """
    name = type(module).__name__
    if not overrides(module, "forward", FederatedModule):
        scopes = {part: getattr(module, part, None) for part in (("body", "head")[: 1 + head])}
    elif type(module).forward.__module__.startswith(_OURS):
        scopes = {"": module}
    else:
        return f"{name} has a forward of its own"
    for part, scope in scopes.items():
        if not isinstance(scope, nn.Module):
            return f"{name}.{part} is not a torch module"
        for path, child in scope.named_modules():
            if child is not module and not _one_by_one(child):
                kind = type(child).__name__
                return f"{path or part} is of a type, {kind}, that is not known here"
    return None


def watched(module: pl.LightningModule) -> str | None:
    """Return what sees the network run, or makes it depend on the batch, or ``None``."""
    name = type(module).__name__
    if "forward" in vars(module) or module._compiled_call_impl is not None:
        return f"{name}.forward has been replaced"
    for path, child in module.named_modules():
        if any(getattr(child, hooks) for hooks in _HOOKS):
            return f"{path or name} has hooks that want to see it run"
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.running_mean is None:
            return f"{path} has no running statistics, so outputs depend on the batch"
    return None


def _one_by_one(child: nn.Module) -> bool:
    """Whether a module, in eval mode, is known to make of each example what is in that alone."""
    if "forward" in vars(child):
        return False
    if type(child) is nn.Flatten:
        return child.start_dim >= 1
    if type(child).__module__.startswith((_OURS, *_TORCHVISION)):
        return bool(getattr(child, "dims", (0,))[0] == 0)  # a Permute may move the examples' axis
    return type(child) in _ONE_BY_ONE
