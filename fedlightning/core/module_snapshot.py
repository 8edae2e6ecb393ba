"""What a module holds beside its state dict, taken at one moment and put back at another.

Metric objects, hidden states, lists of outputs, modes and gradient flags are attributes. A client
update, an evaluation and a fine-tuning each leave them as they were, so that nothing passes from
one client to another or from an evaluation into the global model.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Changes", "ModuleSnapshot", "TensorBindings", "WholeModule", "eval_mode"]

_TABLES = ("_parameters", "_buffers", "_modules")
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_values = methodcaller("values")
_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)


class ModuleSnapshot:
    """The attributes of a module and of its children at one moment.

    Attributes that are bound to another object are bound to the first one again, attributes that
    are new are removed. Lists, dicts, sets, deques and tensors that are changed in place get their
    contents back, at any depth of containers; other objects are put back as objects, whatever has
    become of their insides. Parameters, buffers and children are not looked at (see
    :class:`TensorBindings`).

    Where nothing has changed, :meth:`restore` costs a comparison of identities per child.

    Args:
        module: The module.
        ignore: Names of attributes that are not the module's own, such as ``_trainer``.

    Example:
        >>> net = nn.Dropout()
        >>> net.seen = []
        >>> snapshot = ModuleSnapshot(net)
        >>> net.seen.append(1)
        >>> net.hidden = torch.ones(1)
        >>> _ = net.eval()
        >>> snapshot.restore()
        >>> net.seen, hasattr(net, "hidden"), net.training
        ([], False, True)
    """

    def __init__(self, module: nn.Module, ignore: Collection[str] = ()) -> None:
        self._ignored = _INTERNAL.union(ignore) - {"training"}
        self._owners: list[tuple[dict[str, Any], tuple[Any, ...], dict[str, Any]]] = []
        tensors = (*module.parameters(), *module.buffers())
        self._state = {_address(tensor) for tensor in tensors} - {0}
        found: list[tuple[Any, Any]] = []
        for child in module.modules():
            own = vars(child)
            self._owners.append((own, tuple(own.values()), dict(own)))
            for name, value in own.items():
                if name not in self._ignored:
                    _contents_of(value, self._state, found)
        self._contents = [(value, contents, _version(value)) for value, contents in found]

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        return all(
            len(own) == len(values) and all(map(is_, own.values(), values))
            for own, values, _ in self._owners
        ) and all(_same(*entry) for entry in self._contents)

    def restore(self) -> None:
        """Put everything back."""
        for own, values, entries in self._owners:
            if len(own) != len(values) or not all(map(is_, own.values(), values)):
                self._rebind(own, entries)
        for container, contents, version in self._contents:
            if not _same(container, contents, version):
                _refill(container, contents)

    def changes(self) -> Changes:
        """Return what is different now; to be put back by :meth:`Changes.apply`."""
        rebound: list[tuple[dict[str, Any], dict[str, Any], frozenset[str]]] = []
        for own, values, entries in self._owners:
            if len(own) == len(values) and all(map(is_, own.values(), values)):
                continue
            new = {
                name: value
                for name, value in own.items()
                if name not in self._ignored and (name not in entries or entries[name] is not value)
            }
            gone = frozenset(entries.keys() - own.keys() - self._ignored)
            if new or gone:
                rebound.append((own, new, gone))
        held: list[tuple[Any, Any]] = [
            (value, value.detach().clone() if isinstance(value, Tensor) else value.copy())
            for value, before, version in self._contents
            if not _same(value, before, version)
        ]
        for _, new, _ in rebound:
            for value in new.values():
                _contents_of(value, self._state, held)
        return Changes(rebound, held)

    def growth(self) -> list[tuple[list[Any], list[Any]]]:
        """Return the lists that have become longer, each with what was appended.

        Example:
            >>> net = nn.Identity()
            >>> net.seen = [1]
            >>> snapshot = ModuleSnapshot(net)
            >>> net.seen += [2, 3]
            >>> snapshot.growth()
            [([1, 2, 3], [2, 3])]
        """
        return [
            (value, value[len(before) :])
            for value, before, _ in self._contents
            if isinstance(value, list) and len(value) > len(before) and all(map(is_, value, before))
        ]

    def _rebind(self, own: dict[str, Any], entries: dict[str, Any]) -> None:
        ignored = self._ignored
        now = dict(own)
        own.clear()
        own.update(
            {name: now.get(name, value) if name in ignored else value
             for name, value in entries.items()}
        )  # fmt: skip
        own.update({name: v for name, v in now.items() if name in ignored and name not in entries})


class Changes:
    """What an evaluation, say, has changed in a module's attributes, to be made again later.

    Args:
        rebound: Attribute tables, with the entries that are new and the names that are gone.
        contents: Tensors and containers, and what is in them.
    """

    def __init__(
        self,
        rebound: list[tuple[dict[str, Any], dict[str, Any], frozenset[str]]],
        contents: list[tuple[Any, Any]],
    ) -> None:
        self._rebound = rebound
        self._contents = contents

    def apply(self) -> None:
        """Make the changes again."""
        for own, new, gone in self._rebound:
            own.update(new)
            for name in gone:
                own.pop(name, None)
        for container, contents in self._contents:
            _refill(container, contents)


class TensorBindings:
    """Which parameters, buffers and children a module has, and their places.

    Optimizers and views of the state hold the tensors of the start. A client that assigns another
    one (``self.scale = nn.Parameter(...)``, ``self.mean = 0.9 * self.mean``) would train a tensor
    that nothing else knows, and leave it to the next client.

    Args:
        module: The module.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> bindings, weight = TensorBindings(net), net.weight
        >>> net.weight = nn.Parameter(net.weight.detach() + 1)
        >>> bindings.changed()
        True
        >>> bindings.restore()
        >>> net.weight is weight
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._tables = [
            (child, table, dict(table))
            for child in module.modules()
            for table in (getattr(child, name) for name in _TABLES)
        ]
        self._now = [table for _, table, _ in self._tables]
        self._names = [list(table) for table in self._now]
        self._entries = [entry for table in self._now for entry in table.values()]

    def changed(self) -> bool:
        """Whether anything that makes up the state is not where it was."""
        if list(map(list, self._now)) == self._names and all(
            map(is_, chain.from_iterable(map(_values, self._now)), self._entries)
        ):
            return False  # the usual case, asked several times per client
        for owner, now, then in self._tables:
            if any(now.get(name) is not entry for name, entry in then.items()):
                return True
            if len(now) != len(then) and _new_state(owner, now, then):
                return True
        return False

    def restore(self) -> None:
        """Put everything back; caches that are no state (non-persistent buffers) may stay."""
        for owner, now, then in self._tables:
            new = {*then, *_new_state(owner, now, then)}
            caches = {name: entry for name, entry in now.items() if name not in new}
            now.clear()
            now.update(then | caches)  # in the order of the start

    @contextmanager
    def rebound(self) -> Iterator[None]:
        """Put everything back inside the ``with`` block alone."""
        present = [(now, dict(now)) for _, now, _ in self._tables]
        self.restore()
        try:
            yield
        finally:
            for now, entries in present:
                now.clear()
                now.update(entries)


class WholeModule:
    """All of a module at one moment: attributes, which tensors it has, and their values.

    Values of buffers are put back whenever :meth:`restore` is called, those of parameters where
    torch has counted a change in place.

    Args:
        module: The module.
        ignore: Names of attributes that are not the module's own.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> before = WholeModule(norm)
        >>> _ = norm(torch.randn(8, 2))
        >>> before.restore()
        >>> norm.num_batches_tracked
        tensor(0)
    """

    def __init__(self, module: nn.Module, ignore: Collection[str] = ()) -> None:
        self._bindings = TensorBindings(module)
        self._snapshot = ModuleSnapshot(module, ignore)
        buffers, parameters = dict(module.named_buffers()), dict(module.named_parameters())
        self._buffers = [(buffer, _copy_of(buffer)) for buffer in buffers.values()]
        self._parameters = [
            (parameter, _copy_of(parameter), _version(parameter))
            for parameter in parameters.values()
            if not nn.parameter.is_lazy(parameter)
        ]

    def changes(self) -> Changes:
        """Return what is different now among the attributes."""
        return self._snapshot.changes()

    def growth(self) -> list[tuple[list[Any], list[Any]]]:
        """Return the lists among the attributes that have become longer, and what was appended."""
        return self._snapshot.growth()

    def restore(self) -> None:
        """Put everything back."""
        if self._bindings.changed():
            self._bindings.restore()
        self._snapshot.restore()
        self.restore_values()

    def restore_values(self) -> None:
        """Put back the values of parameters and buffers, and nothing else."""
        for buffer, value in self._buffers:
            _refill(buffer, value)
        for place, (parameter, value, version) in enumerate(self._parameters):
            if _version(parameter) != version or version < 0:
                _refill(parameter, value)
                self._parameters[place] = parameter, value, _version(parameter)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Hold a module in eval mode inside the ``with`` block; each layer gets its own mode back.

    Example:
        >>> layers = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with eval_mode(layers):
        ...     print(layers[0].training)
        False
        >>> layers[0].training, layers[1].training
        (True, False)
    """
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


def _copy_of(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _same(container: Any, contents: Any, version: int) -> bool:
    """Whether a tensor or a container has the contents that it had."""
    if isinstance(container, Tensor):
        return version >= 0 and container._version == version
    if len(container) != len(contents):
        return False
    if isinstance(container, set):
        return bool(container == contents)
    if isinstance(container, dict):
        if not all(map(is_, container, contents)):
            return False
        container, contents = container.values(), contents.values()
    return all(map(is_, container, contents))


def _refill(container: Any, contents: Any) -> None:
    if isinstance(container, Tensor):
        with torch.inference_mode(container.is_inference()), torch.no_grad():
            container.copy_(contents)
    elif isinstance(container, (list, deque)):
        container.clear()
        container.extend(contents)
    else:
        container.clear()
        container.update(contents)


def _contents_of(value: Any, state: Collection[int], found: list[tuple[Any, Any]]) -> None:
    """Note the contents of a tensor, or of a container and of what it contains.

    Args:
        value: The value of an attribute.
        state: Addresses of the tensors of the module's state, which are not copied.
        found: Gets the tensors and containers with copies of their contents.
    """
    if isinstance(value, Tensor):
        if not nn.parameter.is_lazy(value) and _address(value) not in state:
            found.append((value, value.detach().clone()))
    elif isinstance(value, _CONTAINERS) and not any(value is known for known, _ in found):
        found.append((value, value.copy()))
        for item in value.values() if isinstance(value, dict) else value:
            _contents_of(item, state, found)
    elif isinstance(value, tuple):
        for item in value:
            _contents_of(item, state, found)


def _version(value: Any) -> int:
    """Return a count of a tensor's changes in place; -1 where torch does not count them."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else -1


def _address(tensor: Tensor) -> int:
    """Return where a tensor's elements lie; 0 where it has no elements, or not one storage."""
    if nn.parameter.is_lazy(tensor) or tensor.layout is not torch.strided:
        return 0
    return tensor.data_ptr()


def _new_state(owner: nn.Module, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Return new entries that a state dict would show."""
    transient = owner._non_persistent_buffers_set
    return [
        name
        for name, entry in now.items()
        if name not in then
        and (
            (isinstance(entry, Tensor) and name not in transient)
            or (isinstance(entry, nn.Module) and bool(entry.state_dict()))
        )
    ]
