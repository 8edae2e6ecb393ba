"""What optimizers and schedules by step remember, as tensors by name.

An optimizer remembers tensors, numbers and lists of them, a schedule remembers numbers. The
tensors are stored as they are; everything else, and where each tensor belongs, is one JSON text,
itself a tensor of bytes. So the whole can be kept, sent, counted in bytes and resumed exactly.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fedlightning.core.state import State
from fedlightning.errors import ConfigError

__all__ = ["load_memory", "memory_of"]

_REST = "rest"
Groups = Sequence[Mapping[str, Any]]
"""The hyperparameters of an optimizer's groups, without the parameters."""


@torch.no_grad()
def memory_of(
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[LRScheduler],
    scaler: Any,
    start: Sequence[Groups],
) -> State:
    """Return copies of what optimizers, schedules and the gradient scaler remember.

    Of an optimizer's hyperparameters, those that differ from the start are among it.

    Args:
        optimizers: The optimizers.
        schedulers: Their schedules by step.
        scaler: The gradient scaler, if there is one.
        start: The hyperparameters that the optimizers begin with, by optimizer and group.

    Raises:
        ConfigError: If something is remembered that is not made of tensors, numbers and texts.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> weight.sum().backward()
        >>> sgd.step()
        >>> sorted(memory_of([sgd], [], None, [[{}]]))
        ['0.0.momentum_buffer', 'rest']
    """
    tensors: State = {}
    content = []
    for number, (optimizer, groups) in enumerate(zip(optimizers, start, strict=True)):
        name = type(optimizer).__name__
        places = {p: index for index, p in enumerate(_parameters(optimizer))}
        state = {places.get(p, p): values for p, values in optimizer.state.items()}
        changed = [
            {k: v for k, v in group.items() if k != "params" and _differs(v, base.get(k))}
            for group, base in zip(optimizer.param_groups, groups, strict=True)
        ]
        own = {"state": _Writer(tensors, name).write(state, str(number))}
        own["groups"] = _Writer(tensors, name).write(changed, f"{number}.groups")
        content.append(own)
    schedules = [
        _Writer(tensors, type(s).__name__, partly=True).write(s.state_dict(), f"schedule{n}")
        for n, s in enumerate(schedulers)
    ]
    scale = _Writer(tensors, "scaler").write(scaler.state_dict(), "scaler") if scaler else None
    text = json.dumps({"optimizers": content, "schedules": schedules, "scaler": scale})
    tensors[_REST] = torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)
    return tensors


@torch.no_grad()
def load_memory(
    memory: Mapping[str, Tensor],
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[LRScheduler],
    scaler: Any,
) -> None:
    """Give optimizers and schedules that start anew what others remembered; tensors are copied.

    Args:
        memory: What :func:`memory_of` has returned, of the same kinds of optimizers.
        optimizers: The optimizers.
        schedulers: Their schedules by step.
        scaler: The gradient scaler, if there is one.

    Raises:
        ConfigError: If it is that of other optimizers or schedules.
    """
    content = json.loads(bytes(memory[_REST].cpu().tolist()))
    for what, found, there in (
        ("optimizers", content["optimizers"], optimizers),
        ("schedules", content["schedules"], schedulers),
    ):
        if len(found) != len(there):
            raise ConfigError(
                f"federation.optimizer_state: the state is that of {len(found)} {what}, and the "
                f"module has {len(there)}; configure_optimizers must return the same in each run."
            )
    for optimizer, own in zip(optimizers, content["optimizers"], strict=True):
        parameters = _parameters(optimizer)
        for place, values in _items(own["state"]):
            like = parameters[place] if isinstance(place, int) else None
            state = _read(values, memory, None, like)
            optimizer.state[like if like is not None else place] = state
        groups = _read(own["groups"], memory, [dict(g) for g in optimizer.param_groups], None)
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group.update(values)
    for scheduler, own in zip(schedulers, content["schedules"], strict=True):
        now = copy.deepcopy(scheduler.state_dict())
        scheduler.load_state_dict(_read(own, memory, now, None))
    if scaler and content["scaler"] is not None:
        scaler.load_state_dict(_read(content["scaler"], memory, scaler.state_dict(), None))


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _differs(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.shape != other.shape or not torch.equal(value, other)
    return type(value) is not type(other) or bool(value != other)


class _Writer:
    """Turns a value into what JSON can say, and puts its tensors beside it.

    Args:
        tensors: Takes the tensors, by name.
        owner: Whose value it is, for messages.
        partly: Whether to leave out what can be neither said nor stored, such as a function: it
            is then what the reader's own object has in its place.
    """

    def __init__(self, tensors: State, owner: str, partly: bool = False) -> None:
        self._tensors, self._owner, self._partly = tensors, owner, partly

    def write(self, value: Any, path: str) -> Any:
        """Return a number, a text or ``None`` as it is, and anything else as a tagged dict."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            self._tensors[path] = value.detach().clone()
            return {"tensor": path, "cpu": value.device.type == "cpu"}
        if isinstance(value, Mapping):
            return {"dict": [[k, self.write(v, f"{path}.{k}")] for k, v in value.items()]}
        if isinstance(value, (list, tuple)):
            items = [self.write(item, f"{path}.{index}") for index, item in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": items}
        if self._partly:
            return {"own": None}
        raise ConfigError(
            f"federation.optimizer_state: {self._owner} remembers {path}={value!r:.60}, which can "
            "be neither kept nor sent; set it to fresh."
        )


def _items(written: Mapping[str, Any]) -> list[Any]:
    return list(written["dict"])


def _read(value: Any, memory: Mapping[str, Tensor], now: Any, like: Tensor | None) -> Any:
    """Return what :class:`_Writer` has written.

    Args:
        value: What it returned.
        memory: The tensors.
        now: What stands in its place; containers become of its kind.
        like: The parameter that it belongs to, whose device and layout tensors take.
    """
    if not isinstance(value, dict):
        return value
    if "own" in value:
        return now
    if "tensor" in value:
        stored = memory[value["tensor"]]
        device = torch.device("cpu") if value["cpu"] or like is None else like.device
        if like is not None and like.shape == stored.shape and like.device == device:
            return torch.empty_like(like, dtype=stored.dtype).copy_(stored)
        return stored.to(device, copy=True)
    if "dict" in value:
        inside = now if isinstance(now, dict) else {}
        read = {k: _read(v, memory, inside.get(k), like) for k, v in value["dict"]}
        if type(inside) is dict:
            return read
        container = copy.copy(inside)  # a Counter, say
        container.clear()
        container.update(read)
        return container
    ((kind, items),) = value.items()
    there = now if isinstance(now, Sequence) and len(now) == len(items) else [None] * len(items)
    read_items = [_read(v, memory, t, like) for v, t in zip(items, there, strict=True)]
    return tuple(read_items) if kind == "tuple" else read_items
