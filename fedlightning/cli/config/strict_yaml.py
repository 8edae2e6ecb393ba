"""Check YAML for duplicate keys, alias bombs and tags, and name the line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from fedlightning.errors import ConfigError

__all__ = ["check_config", "check_text"]

_MOST_VALUES = 100_000
_DEEPEST = 100
_LONGEST = 40
_CONVERTED = {"int", "float", "timestamp"}
_STANDARD = "tag:yaml.org,2002:"
_PLAIN = {"str", "int", "float", "bool", "null", "seq", "map", "merge", "timestamp", "value"}

_HINTS = {
    "cannot start any token": " (indent with spaces; quote a value that begins with % or @)",
    "mapping values are not allowed": " (check the indentation; quote a value with a colon in it)",
    "undefined alias": " (quote a value that begins with *)",
}


def check_config(text: str, name: str) -> None:
    """Check a config file as :func:`check_text` does, and that it is a mapping.

    Args:
        text: The file's content.
        name: The file's name, for the message.

    Raises:
        ConfigError: The text is not a config.

    Example:
        >>> check_config("- 1", "list.yaml")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: list.yaml: top level must be a mapping, ..., got a list.
    """
    root = check_text(text, name)
    if not isinstance(root, yaml.MappingNode):
        got = {"SequenceNode": "a list", "ScalarNode": "a single value"}.get(
            type(root).__name__, "nothing: the file is empty"
        )
        raise ConfigError(f"{name}: top level must be a mapping, such as 'model: ...', got {got}.")


def check_text(text: str, name: str) -> yaml.Node | None:
    """Check that YAML is well-formed, with plain values, no duplicate keys and no alias bombs.

    Args:
        text: The YAML.
        name: Its origin, for the message.

    Returns:
        The parsed tree, ``None`` for an empty text.

    Raises:
        ConfigError: The check fails; the message names the line.

    Example:
        >>> check_text("{lr: 1, lr: 2}", "dup.yaml")
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: dup.yaml: duplicate key lr (lines 1, 1).
    """
    try:
        _check_depth(text, name)
        root: yaml.Node | None = yaml.compose(text, Loader=_Loader)
        if root is not None:
            _check_size(root, name)
            _check_nodes(root, name)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{name}:{_line(error)}: {_problem(error)}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}.") from error
    return root


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_depth(text: str, name: str) -> None:
    """Refuse deep nesting before the tree is built: libyaml's builder is recursive, and crashes."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ConfigError(f"{name}:{_at(event)}: nested deeper than {_DEEPEST} levels.")


def _check_size(root: yaml.Node, name: str) -> None:
    """Count the values that the tree expands to, without expanding it."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise ConfigError(f"{name}:{_at(node)}: an alias refers to itself.")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(child) for child in _children(node))
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if (values := size(root)) > _MOST_VALUES:
        count = str(values) if values < 10**12 else f"about 10^{len(str(values)) - 1}"
        raise ConfigError(
            f"{name}: too many aliases or values: it expands to {count} values; at most "
            f"{_MOST_VALUES} are read."
        )


def _check_nodes(root: yaml.Node, name: str) -> None:
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.tag.removeprefix(_STANDARD) not in _PLAIN:
            tag = node.tag.replace(_STANDARD, "!!")
            raise ConfigError(
                f"{name}:{_at(node)}: the tag {tag} is not allowed; use plain values."
            )
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, name)
        elif node.tag.removeprefix(_STANDARD) in _CONVERTED:
            _check_value(node, name)
        stack.extend(_children(node))


def _check_value(node: yaml.Node, name: str) -> None:
    """Refuse an invalid number or date, such as the 99th of May."""
    try:
        yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, OverflowError) as error:
        value = node.value if len(node.value) <= _LONGEST else f"{node.value[:_LONGEST]}..."
        raise ConfigError(
            f"{name}:{_at(node)}: {value} cannot be read ({error}); quote it if it is a string."
        ) from error


def _check_keys(node: yaml.MappingNode, name: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{name}:{_at(key)}: a key must be a word, not a list or a mapping.")
        if key.value in lines and key.value != "<<":
            raise ConfigError(
                f"{name}: duplicate key {key.value} (lines {lines[key.value]}, {_at(key)})."
            )
        lines[key.value] = _at(key)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _at(place: yaml.Node | yaml.Event) -> int:
    """Return the line of a node or an event."""
    return place.start_mark.line + 1 if place.start_mark is not None else 1


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return int(mark.line) + 1 if mark is not None else 1


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = (error.problem or "not YAML").removeprefix("did not find ")
    if error.context and error.context.startswith("expected"):
        problem = f"{error.context} {problem}"
    hints = (hint for found, hint in _HINTS.items() if found in problem)
    return problem + next(hints, "")
