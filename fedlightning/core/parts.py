"""A model's parts: named sets of state-dict keys, and expressions over the names.

``head`` and any others that a module names are parts, ``body`` is the rest, ``norm`` is the
BatchNorm layers, ``full`` is everything, ``none`` nothing. An expression adds and removes parts
from left to right: ``adapter + head``, ``full - norm``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal, cast

import pytorch_lightning as pl
from torch import Tensor, nn

from fedlightning.core.state import State, live_state
from fedlightning.errors import ConfigError, did_you_mean

__all__ = [
    "RESERVED",
    "Buffers",
    "KeyRoles",
    "Names",
    "Parts",
    "belongs",
    "canonical",
    "head_module",
    "names_in",
    "needs_names",
    "norm_keys",
    "split_parts",
    "split_subtractions",
    "without",
]

RESERVED = ("full", "none", "body", "norm")
"""The names that every model has, and no module can give to a part of its own."""

Buffers = Literal["average", "local", "exclude"]
"""What becomes of buffers: the mean of what is shared, each client's own, or the initial ones."""

Names = Mapping[str, str | Sequence[str]]
"""Key prefixes or patterns by the name of the part, as a module states them."""

_TOKEN = re.compile(r"[^\W\d]\w*|\S")
_WILDCARDS = re.compile(r"[*?\[]")


def _terms(expression: object, setting: str) -> list[tuple[str, str]]:
    """Return the terms of an expression: sign and name, in order.

    Raises:
        ConfigError: If it is not names joined by + and -.
    """
    if not isinstance(expression, str):
        raise ConfigError(f"{setting} must name parts of the model, got {expression!r}.")
    tokens = _TOKEN.findall(expression)
    for index, token in enumerate(tokens):
        if index % 2 and token not in ("+", "-"):
            raise ConfigError(f"{setting}={expression!r}: expected + or - before {token!r}.")
        if index % 2 == 0 and not token.isidentifier():
            raise ConfigError(
                f"{setting}={expression!r}: expected the name of a part, got {token!r}; "
                "join names with + and -, as in 'full - norm'."
            )
    if len(tokens) % 2 == 0:
        end = f"ends in {tokens[-1]!r}; name another part after it" if tokens else "names no part"
        raise ConfigError(f"{setting}={expression!r} {end}.")
    return list(zip(["+", *tokens[1::2]], tokens[::2], strict=True))


def canonical(expression: str, setting: str = "part") -> str:
    """Return an expression with one space around each sign.

    Args:
        expression: Names of parts, joined by + and -.
        setting: Which setting it is, for the message.

    Raises:
        ConfigError: If it is anything else.

    Example:
        >>> canonical("full-norm")
        'full - norm'
        >>> canonical("full norm", "algorithm.share")
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: algorithm.share='full norm': expected + or - before 'norm'.
    """
    return "".join(f" {sign} {name}" for sign, name in _terms(expression, setting))[3:]


def names_in(expression: str) -> tuple[str, ...]:
    """Return the names in an expression, in order.

    Example:
        >>> names_in("full - norm")
        ('full', 'norm')
    """
    return tuple(name for _, name in _terms(expression, "part"))


def needs_names(expression: str) -> bool:
    """Return whether an expression has a meaning only for a module that names its parts.

    Example:
        >>> needs_names("full - norm"), needs_names("body")
        (False, True)
    """
    return any(name not in ("full", "none", "norm") for name in names_in(expression))


def split_subtractions(expression: str) -> tuple[str, tuple[str, ...]]:
    """Return an expression up to the parts that are removed at its end, and these.

    Example:
        >>> split_subtractions("adapter + head - norm")
        ('adapter + head', ('norm',))
    """
    names = expression.split(" - ")
    kept = max((i for i, text in enumerate(names) if "+" in text), default=0)
    return " - ".join(names[: kept + 1]), tuple(names[kept + 1 :])


def without(expression: str, *names: str) -> str:
    """Return an expression with parts removed at its end, each once.

    Example:
        >>> without("body", "norm"), without("full - norm", "norm"), without("none", "norm")
        ('body - norm', 'full - norm', 'none')
    """
    base, removed = split_subtractions(expression)
    return base if base == "none" else " - ".join([base, *dict.fromkeys([*removed, *names])])


@dataclass(frozen=True)
class Parts:
    """The state-dict keys of a model by the names of its parts.

    Parts may overlap, as an adapter inside the head does. No key of the body is in a part that the
    module names.

    Args:
        full: All keys: those of the body first, each side in the order of the state dict.
        named: Keys of the parts that the module names.
        norm: Keys of the BatchNorm layers, statistics included.
        owner: Name of the module's class, for messages.
        headless: Why the head is unknown, where it is.

    Example:
        >>> parts = Parts(("body.weight", "body.bias", "head.weight"), {"head": ("head.weight",)})
        >>> parts.body
        ('body.weight', 'body.bias')
        >>> parts.keys("full - head")
        ('body.weight', 'body.bias')
        >>> parts.keys("haed")
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: part='haed': the model has no part 'haed' (it has head, ...
    """

    full: tuple[str, ...]
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    norm: tuple[str, ...] = ()
    owner: str = "the model"
    headless: str = ""

    @cached_property
    def body(self) -> tuple[str, ...]:
        """The keys in no part that the module names."""
        named = {key for keys in self.named.values() for key in keys}
        return tuple(key for key in self.full if key not in named)

    @property
    def head(self) -> tuple[str, ...]:
        """The keys of the head.

        Raises:
            ConfigError: If the module does not say which part is its head.
        """
        return self.keys("head")

    def keys(self, expression: str, setting: str = "part") -> tuple[str, ...]:
        """Return the keys of a part, or of an expression, in the order of ``full``.

        Args:
            expression: Names of parts, joined by + and -.
            setting: Which setting it is, for messages.

        Raises:
            ConfigError: If it is not an expression, or the model has no part of a name in it.
        """
        chosen: set[str] = set()
        for sign, name in _terms(expression, setting):
            keys = self._keys_of(name, f"{setting}={expression!r}")
            chosen = chosen.union(keys) if sign == "+" else chosen.difference(keys)
        return tuple(key for key in self.full if key in chosen)

    def _keys_of(self, name: str, setting: str) -> Collection[str]:
        if name in self.named:
            return self.named[name]
        if name == "full":
            return self.full
        if name == "none":
            return ()
        if name == "norm":
            if not self.norm:
                raise ConfigError(f"{setting}: {self.owner} has no BatchNorm layers.")
            return self.norm
        if self.headless and (name == "head" or (name == "body" and not self.named)):
            raise ConfigError(self.headless)
        if name == "body":
            return self.body
        known = (*self.named, *RESERVED)
        raise ConfigError(
            f"{setting}: {self.owner} has no part {name!r} (it has {', '.join(known)}); name it in "
            f"the module's `parts`.{did_you_mean(name, known)}"
        )


def split_parts(
    module: nn.Module, head: str | Sequence[str] | None, names: Names | None = None
) -> Parts:
    """Split a module's state-dict keys into parts.

    Args:
        module: The model.
        head: One or several key prefixes that name the head, such as ``"head"`` or ``"net.fc"``; a
            prefix is a whole name: ``"fc"`` is not a prefix of ``"fc2.weight"``. A pattern such as
            ``"*.fc"`` stands for all prefixes that it matches. ``None`` if the head is unknown.
        names: The same for other parts, by their names.

    Raises:
        ConfigError: If a prefix matches nothing, if the head has no parameters, if nothing is left
            for the body, if parameters are not initialised yet, or if a tensor is in a part and
            tied to one outside.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> split_parts(net, head="2").head
        ('2.weight', '2.bias')
        >>> split_parts(net, "2", {"biases": "*.bias"}).keys("biases - head")
        ('0.bias',)
    """
    owner = type(module).__name__
    stated = {name: _prefixes(given, name, owner) for name, given in (names or {}).items()}
    if head is not None:
        stated = {"head": (head,) if isinstance(head, str) else tuple(head), **stated}
        if not stated["head"]:
            raise ConfigError(f"head=[] names no head of {owner}; give at least one key prefix.")
    _check_initialised(module)
    state = live_state(module)
    named: dict[str, tuple[str, ...]] = {}
    for name, prefixes in stated.items():
        for prefix in prefixes:
            _check_known(module, state, name, prefix)
        named[name] = tuple(key for key in state if belongs(key, prefixes))
    outside = {key for keys in named.values() for key in keys}
    full = sorted(state, key=outside.__contains__)
    if len(named.get("head", ())) == len(state):
        raise ConfigError(
            f"head={_shown(cast(str, head))} covers all of {owner}: no body is left to train "
            "together. Name only the last layer or layers."
        )
    for name, keys in named.items():
        _check_untied(state, name, keys, owner)
    return Parts(tuple(full), named, norm_keys(module, state), owner)


def belongs(key: str, prefixes: Iterable[str]) -> bool:
    """Return whether a key has one of several prefixes or matches one of several patterns.

    Example:
        >>> [belongs(key, ["fc", "*.lora_?"]) for key in ("fc.bias", "fc2.bias", "fc2.lora_A")]
        [True, False, True]
    """
    return any(
        key == prefix
        or key.startswith(f"{prefix}.")
        or (
            _WILDCARDS.search(prefix) is not None
            and (fnmatchcase(key, prefix) or fnmatchcase(key, f"{prefix}.*"))
        )
        for prefix in prefixes
    )


def _prefixes(given: object, name: str, owner: str) -> tuple[str, ...]:
    """Return the prefixes of a part that a module names."""
    if not (isinstance(name, str) and name.isidentifier()) or name in RESERVED:
        raise ConfigError(
            f"parts of {owner}: {name!r} cannot name a part; use a word other than "
            f"{', '.join(RESERVED)}."
        )
    prefixes = (given,) if isinstance(given, str) else given
    if not (
        isinstance(prefixes, Sequence)
        and prefixes
        and all(prefix and isinstance(prefix, str) for prefix in prefixes)
    ):
        raise ConfigError(
            f"parts of {owner}: {name!r} must be a key prefix or pattern, or a list of them, "
            f"got {given!r}."
        )
    return tuple(prefixes)


def _shown(head: str | Sequence[str]) -> str:
    return repr(head) if isinstance(head, str) else repr(list(head))


def _check_known(module: nn.Module, state: State, part: str, prefix: str) -> None:
    """Refuse a prefix that matches nothing, or, for the head, nothing that can be trained."""
    if any(belongs(key, [prefix]) for key, _ in module.named_parameters()):
        return
    owner = type(module).__name__
    setting = f"head={prefix!r}" if part == "head" else f"parts[{part!r}]={prefix!r}"
    buffers = any(belongs(key, [prefix]) for key in state)
    if buffers and part != "head":
        return
    if buffers or any(prefix == path for path, _ in module.named_modules()):
        raise ConfigError(
            f"{setting} of {owner} has no parameters; name a layer that has a weight."
        )
    candidates = [
        path
        for path, child in module.named_modules()
        if path and any(True for _ in child.parameters(recurse=False))
    ]
    children = [
        path for path, child in module.named_children() if any(True for _ in child.parameters())
    ]
    if _WILDCARDS.search(prefix):
        candidates += [f"*.{key.rpartition('.')[2]}" for key in state]
    inside = next((path for path in candidates if path.endswith(f".{prefix}")), None)
    raise ConfigError(
        f"{setting} matches no parameter of {owner} (modules: {', '.join(children)})."
        + (
            did_you_mean(inside, [inside])
            if inside
            else did_you_mean(prefix, [*children, *candidates])
        )
    )


def _check_initialised(module: nn.Module) -> None:
    for key, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ConfigError(
                f"{key} of {type(module).__name__} is a lazy parameter without a shape; "
                "give the layer its sizes, or run one batch through it before fit."
            )


def _check_untied(state: State, part: str, keys: Sequence[str], owner: str) -> None:
    """Refuse a part with a tensor that is also outside it."""
    inside = set(keys)
    outside = {
        pointer: key
        for key, value in state.items()
        if key not in inside and (pointer := value.data_ptr())
    }
    for key in keys:
        if (twin := outside.get(state[key].data_ptr())) is None:
            continue
        if part == "head":
            raise ConfigError(
                f"{twin} (body) and {key} (head) of {owner} are one tied tensor: the head cannot "
                "stay still while the body moves. Untie them, or put both in one part."
            )
        raise ConfigError(
            f"{key} is in part {part!r} of {owner} and tied to {twin}, which is not. Untie them, "
            "or put both in that part."
        )


@dataclass(frozen=True)
class KeyRoles:
    """What becomes of a model's keys; a key may have several of these roles, or none.

    Args:
        trained: Keys that a client update may change.
        shared: Keys that a client sends and the server merges.
        kept: Keys that a client keeps from round to round.
    """

    trained: tuple[str, ...]
    shared: tuple[str, ...]
    kept: tuple[str, ...]

    @classmethod
    def of(cls, parts: Parts, train: str, share: str, keep: bool) -> KeyRoles:
        """Return the roles that follow from an algorithm's choices.

        Args:
            parts: The model's parts.
            train: What clients train, an expression.
            share: What they send, an expression.
            keep: Whether a client keeps what it trains and does not send.

        Raises:
            ConfigError: If a choice names a part that the model does not have, or nothing is left
                to train, or nothing to share without saying ``none``.

        Example:
            >>> parts = Parts(("conv.weight", "bn.weight", "head.weight"),
            ...               {"head": ("head.weight",)}, norm=("bn.weight",))
            >>> KeyRoles.of(parts, "full", "body", keep=True).kept
            ('head.weight',)
            >>> KeyRoles.of(parts, "body", "body", keep=True).kept
            ()
            >>> KeyRoles.of(parts, "full", "full - norm", keep=True).kept
            ('bn.weight',)
        """
        trained = parts.keys(train, "algorithm.train")
        shared = parts.keys(share, "algorithm.share")
        if not trained:
            raise ConfigError(
                f"algorithm.train={train!r} leaves nothing of {parts.owner} to train."
            )
        if not shared and share != "none":
            raise ConfigError(
                f"algorithm.share={share!r} leaves nothing of {parts.owner} to share; say 'none' "
                "if that is meant."
            )
        sent = set(shared)
        kept = tuple(key for key in trained if key not in sent) if keep else ()
        return cls(trained, shared, kept)

    def within(self, keys: Iterable[str]) -> KeyRoles:
        """Return the roles of some keys alone.

        Example:
            >>> KeyRoles(("a", "b"), (), ("a", "b")).within(["b"]).kept
            ('b',)
        """
        own = frozenset(keys)
        roles = (self.trained, self.shared, self.kept)
        return KeyRoles(*(tuple(key for key in role if key in own) for role in roles))

    def with_buffers(self, buffers: Collection[str], policy: Buffers) -> KeyRoles:
        """Return the roles under a policy for buffers that would be shared.

        Example:
            >>> roles = KeyRoles(("w", "mean"), ("w", "mean"), ())
            >>> roles.with_buffers(["mean"], "local")
            KeyRoles(trained=('w', 'mean'), shared=('w',), kept=('mean',))
            >>> roles.with_buffers(["mean"], "exclude")
            KeyRoles(trained=('w', 'mean'), shared=('w',), kept=())
        """
        if policy == "average":
            return self
        own = tuple(key for key in self.shared if key in buffers)
        shared = tuple(key for key in self.shared if key not in buffers)
        return KeyRoles(self.trained, shared, self.kept + own if policy == "local" else self.kept)

    def kept_of(self, kept: Mapping[str, Tensor]) -> State:
        """Return the parts of the model among everything that a client has kept."""
        return {key: kept[key] for key in self.kept if key in kept}


def norm_keys(module: nn.Module, state: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the state-dict keys of a model's BatchNorm layers.

    Args:
        module: The model.
        state: The keys of its state dict, if they are at hand.

    Example:
        >>> norm_keys(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)))
        ('1.weight', '1.bias')
    """
    layers = {
        f"{path}." if path else ""
        for path, child in module.named_modules()
        if isinstance(child, nn.modules.batchnorm._BatchNorm)
    }
    if not layers:
        return ()
    keys = module.state_dict() if state is None else state
    return tuple(key for key in keys if key[: key.rfind(".") + 1] in layers)


def head_module(module: pl.LightningModule, parts: Parts) -> nn.Module | None:
    """Return the submodule that is the head, or ``None`` if the head is not a single submodule."""
    head = set(parts.head)
    for path, child in module.named_modules():
        if path and {f"{path}.{key}" for key in child.state_dict()} == head:
            return cast(nn.Module, child)
    return None
