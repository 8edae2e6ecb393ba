"""One network, several clients: a call computes all of them, each with weights of its own.

Every tensor has one more dimension, the first: the clients. A convolution over k clients is one
grouped convolution over k times as many channels, a linear layer is one batched matrix product.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.overrides import overrides
from fedlightning.core.state import State, copy_into
from fedlightning.models.base import FederatedModule

__all__ = ["Layers", "layers_of", "mean_losses", "stack_states", "stacked_forward", "unsupported"]

Layers = Sequence[tuple[str, nn.Module]]
_Apply = Callable[[Any, str, State, Tensor], Tensor]


def unsupported(module: FederatedModule) -> str | None:
    """Return why several clients' networks cannot be computed at once, or ``None``.

    Args:
        module: Its network is ``head(body(x))``, built of layers that do not mix examples or
            channels in ways of their own, and draw no random numbers.

    Example:
        >>> net = FederatedModule()
        >>> net.body, net.head = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), nn.Linear(3, 2)
        >>> unsupported(net)
        'body.1 is a Dropout with p=0.5'
    """
    if overrides(module, "forward", FederatedModule):
        return f"{type(module).__name__} has a forward of its own"
    for path, layer in module.named_modules():
        hooks = (layer._forward_hooks, layer._forward_pre_hooks)
        if any(hooks) or layer._backward_hooks or layer._backward_pre_hooks:
            return f"{path or type(module).__name__} has hooks"
    for path, parameter in module.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return f"{path} has hooks"
    for path, layer in layers_of(module):
        if type(layer) not in _APPLY:
            return f"{path} is a {type(layer).__name__}"
        if (setting := _setting(layer)) is not None:
            return f"{path} is a {type(layer).__name__} with {setting}"
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if len(names) != len(list(module.parameters())):
        return "two layers share a parameter"
    return None


def layers_of(module: FederatedModule) -> Layers:
    """Return body and head as one sequence of layers with their key prefixes."""
    return [*_flat("body", module.body), *_flat("head", module.head)]  # type: ignore[arg-type]


def stack_states(states: Sequence[State], like: State) -> State:
    """Return several clients' states as one, clients first.

    Args:
        states: The states; all have the keys and shapes of ``like``.
        like: Its devices, dtypes and layouts in memory are taken.

    Example:
        >>> zeros, ones = {"weight": torch.zeros(2)}, {"weight": torch.ones(2)}
        >>> stack_states([zeros, ones], like=zeros)
        {'weight': tensor([[0., 0.],
                [1., 1.]])}
    """
    stacked: State = {}
    for key, one in like.items():
        strides = torch.empty_like(one).stride()
        shape, layout = (len(states), *one.shape), (one.numel(), *strides)
        stacked[key] = torch.empty_strided(shape, layout, dtype=one.dtype, device=one.device)
    for index, state in enumerate(states):
        copy_into({key: value[index] for key, value in stacked.items()}, state)
    return stacked


def stacked_forward(layers: Layers, state: State, x: Tensor) -> Tensor:
    """Return every client's logits.

    Args:
        layers: The network.
        state: Stacked parameters and buffers; running statistics change.
        x: Inputs of shape (clients, batch, ...).

    Returns:
        Logits of shape (clients, batch, classes).

    Example:
        >>> layers = [("net", nn.Linear(2, 1, bias=False))]
        >>> state = {"net.weight": torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])}
        >>> stacked_forward(layers, state, torch.ones(2, 1, 2)).flatten().tolist()
        [1.0, 3.0]
    """
    for path, layer in layers:
        x = _APPLY[type(layer)](layer, path, state, x)
    return x


def mean_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each client's mean cross-entropy, shape (clients,), as ``F.cross_entropy`` means it.

    Args:
        logits: Shape (clients, batch, classes).
        labels: Shape (clients, batch), or probabilities of the logits' shape.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1), reduction="none")
    losses = losses.view(len(logits), -1)
    if labels.is_floating_point():
        return losses.mean(1)
    counted = labels.flatten(1) != -100  # F.cross_entropy ignores these, in the mean, too
    return losses.sum(1) / counted.sum(1)


def _flat(path: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if type(layer) is nn.Sequential:
        for name, child in layer.named_children():
            yield from _flat(f"{path}.{name}", child)
    elif getattr(layer, "inplace", False):
        layer = copy.copy(layer)  # writing into a view, as activations are here, is slow
        layer.inplace = False  # type: ignore[assignment]
        yield path, layer
    else:
        yield path, layer


def _setting(layer: nn.Module) -> str | None:
    """Return a setting of a known type of layer that the functions below leave out, if any."""
    if "forward" in vars(layer):
        return "a forward of its own"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"padding_mode={layer.padding_mode}"
    if getattr(layer, "return_indices", False):
        return "return_indices"
    if getattr(layer, "track_running_stats", False) and getattr(layer, "momentum", 0) is None:
        return "momentum=None"
    if type(layer) is nn.Dropout and layer.p > 0:
        return f"p={layer.p}"
    return None


def _as_channels(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of (batch, channels, ...) that takes channels, or groups of them, apart."""
    y = function(x.transpose(0, 1).flatten(1, 2))
    return torch.unflatten(y, 1, (len(x), -1)).transpose(0, 1)


def _long(state: State, key: str) -> Tensor | None:
    """Return all clients' vectors one after another."""
    value = state.get(key)
    return value.flatten() if value is not None else None


def _elementwise(layer: nn.Module, path: str, state: State, x: Tensor) -> Tensor:
    y: Tensor = layer(x)
    return y


def _pool(layer: nn.Module, path: str, state: State, x: Tensor) -> Tensor:
    return _as_channels(x, layer)


def _flatten(layer: nn.Flatten, path: str, state: State, x: Tensor) -> Tensor:
    start, end = (dim + 1 if dim >= 0 else dim for dim in (layer.start_dim, layer.end_dim))
    return x.flatten(start, end)


def _linear(layer: nn.Linear, path: str, state: State, x: Tensor) -> Tensor:
    weight, bias = state[f"{path}.weight"], state.get(f"{path}.bias")
    # weight times columns, since rows times weight would give gradients in the wrong layout
    columns = x.flatten(1, -2).transpose(1, 2)
    if bias is None:
        y = torch.bmm(weight, columns)
    else:
        y = torch.baddbmm(bias.unsqueeze(2), weight, columns)
    return torch.unflatten(y.transpose(1, 2), 1, x.shape[1:-1])


def _conv(layer: nn.Conv2d, path: str, state: State, x: Tensor) -> Tensor:
    weight, bias = state[f"{path}.weight"].flatten(0, 1), _long(state, f"{path}.bias")
    groups = len(x) * layer.groups
    return _as_channels(
        x,
        lambda images: F.conv2d(
            images, weight, bias, layer.stride, layer.padding, layer.dilation, groups
        ),
    )


def _batch_norm(layer: nn.BatchNorm2d, path: str, state: State, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        _long(state, f"{path}.{name}") for name in ("running_mean", "running_var", "weight", "bias")
    )
    if layer.training and mean is not None:
        state[f"{path}.num_batches_tracked"].add_(1)
    batch = layer.training or mean is None
    momentum = layer.momentum or 0.0
    return _as_channels(
        x, lambda y: F.batch_norm(y, mean, var, weight, bias, batch, momentum, layer.eps)
    )


def _group_norm(layer: nn.GroupNorm, path: str, state: State, x: Tensor) -> Tensor:
    weight, bias = _long(state, f"{path}.weight"), _long(state, f"{path}.bias")
    groups = len(x) * layer.num_groups
    return _as_channels(x, lambda y: F.group_norm(y, groups, weight, bias, layer.eps))


def _layer_norm(layer: nn.LayerNorm, path: str, state: State, x: Tensor) -> Tensor:
    shape = layer.normalized_shape
    y = F.layer_norm(x, shape, eps=layer.eps)
    ones = [1] * (x.dim() - 1 - len(shape))
    if (weight := state.get(f"{path}.weight")) is not None:
        y = y * weight.view(len(x), *ones, *shape)
    if (bias := state.get(f"{path}.bias")) is not None:
        y = y + bias.view(len(x), *ones, *shape)
    return y


_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Hardswish,
)  # fmt: skip
_POOLS: tuple[type[nn.Module], ...] = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_APPLY: dict[type[nn.Module], _Apply] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_POOLS, _pool),
    nn.Flatten: _flatten,
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
}
