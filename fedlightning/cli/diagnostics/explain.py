"""One line that teaches, for each error of the parser."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fedlightning.cli.config.class_names import STRICT_RULE
from fedlightning.cli.config.references import unmark_references
from fedlightning.cli.config.strict_yaml import check_config
from fedlightning.cli.diagnostics.parser_errors import (
    Complaint,
    any_of,
    literal,
    read_complaints,
    shown,
)
from fedlightning.cli.diagnostics.suggestions import (
    expected_classes,
    find_class,
    nearest_option,
    setting_names,
    subclass_names,
)
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["explain"]

_MOST_NAMES = 25
_EXPECTED = "Expected a "
_CLASS_NAME = "Expected a dot import path string: (.*)"
_NO_MAPPING = r"""Parser key "([^"]+)":.*Unable to load config ['"](.*?)['"]"""
_REQUIRED = (
    "{missing} required; name a config, e.g. --config quickstart.yaml, or see configs/ and "
    "`python -m fedlightning --help`."
)


def explain(message: str, options: Sequence[str]) -> str:
    """Return what is wrong in one line: the full key, the value, what is expected, a near name.

    Args:
        message: What jsonargparse says.
        options: The names of the options that there are.

    Example:
        >>> explain("unrecognized arguments: --trainer.max_epoch=3", ["trainer.max_epochs"])
        "unknown option trainer.max_epoch. Did you mean 'trainer.max_epochs'?"
    """
    if found := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        return _unrecognized(found[1].split(), options)
    if found := re.match(r"(?:Subcommand|Group) '(\S+)' does not accept option '(\S+)'", message):
        group = "" if message.startswith("Subcommand") else f"{found[1]}."
        return _unknown_option(group + found[2], options)
    if found := re.fullmatch(r"the following arguments are required: (.*)", message):
        return _missing(found[1])
    if found := re.match(r"argument (--[\w.+-]+).*: (expected .*)", message):
        return f"{found[1]}: {found[2]}, e.g. {found[1]}=VALUE."
    if found := re.match(rf"--([\w.]+)\.help: ({_CLASS_NAME})", message):
        message = f'Parser key "{found[1]}": {found[2]}'
    if found := re.search(r"Invalid content in sub-config file (\S+?): ", message):
        return _bad_file(Path(found[1])) or _one_line(message)
    if found := re.match(_NO_MAPPING, message, re.DOTALL):
        return f"{found[1]} must be a mapping of settings, or a file with one, got {found[2]!r}."
    if found := re.match(r"Key must be a string, got: (.*?)\.?$", message):
        return f"a setting's name must be a word, got {found[1]}."
    complaints = read_complaints(message)
    telling = [
        complaint for complaint in complaints if not _mistaken_for_class(complaint, complaints)
    ]
    if not any(complaint.keys for complaint in telling):
        return _one_line(message)
    return _one_line(_teach(min(telling, key=_rank), telling))


def _unrecognized(words: list[str], options: Sequence[str]) -> str:
    first = next((word for word in words if word.startswith("--")), None)
    if first is None:
        return f"unexpected {words[0]!r}: options are written --key=value."
    return _unknown_option(first[2:].partition("=")[0], options)


def _unknown_option(key: str, options: Sequence[str]) -> str:
    return f"unknown option {key}.{nearest_option(key, options)}"


def _bad_file(path: Path) -> str | None:
    """Return what is wrong with a file that a config names, if it can be found from here."""
    try:
        check_config(path.read_text(encoding="utf-8"), str(path))
    except ConfigError as error:
        return str(error)
    except (OSError, UnicodeDecodeError):
        return None
    return None


def _missing(keys: str) -> str:
    names = [key.rpartition(".")[2] for key in keys.split(", ")]
    return _REQUIRED.format(missing=f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}")


# -- complaints about a value, the most telling first ----------------------------------------


def _unknown_setting(complaint: Complaint, found: re.Match[str]) -> str | None:
    owner = find_class(complaint.owner) if complaint.owner else None
    name = _short(complaint.owner)
    first, dot, rest = found[1].partition(".")
    names = setting_names(owner) if owner else []
    hint = did_you_mean(first, names) or did_you_mean(first, ["class_path", "init_args"])
    known = "" if hint or len(names) > _MOST_NAMES else f" (its settings: {', '.join(names)})"
    return f"{complaint.key}.{first}{dot}{rest} is no setting of {name}.{hint}{known}"


def _missing_setting(complaint: Complaint, found: re.Match[str]) -> str:
    first, *others = found[1].split(", ")
    more = f" (and {', '.join(others)})" if others else ""
    return f"{complaint.key}.{first} is required by {_short(complaint.owner)}{more}."


def _not_importable(complaint: Complaint, found: re.Match[str]) -> str:
    path, missing = complaint.owner or complaint.value or "", found[1]
    if path == missing or path.startswith(f"{missing}."):
        hint = "is it in the current folder or installed?"
        return f"{complaint.key}: cannot import {missing} for class_path={path!r}: {hint}"
    return f"{complaint.key}: cannot import {path}: it needs {missing!r}, which is not installed."


def _no_attribute(complaint: Complaint, found: re.Match[str]) -> str:
    hint = ""
    if complaint.owner and (bases := expected_classes(complaint.keys, None)):
        hint = did_you_mean(found[2], subclass_names(bases))
    file = getattr(sys.modules.get(found[1]), "__file__", None)
    where = f"{found[1]} ({file})" if file else found[1]
    return f"{complaint.key}: cannot import {found[2]} from {where}: no such name.{hint}"


def _unknown_class(complaint: Complaint, found: re.Match[str]) -> str | None:
    owner = complaint.owner if complaint.owner_key < len(complaint.keys) else None
    bases = expected_classes(complaint.keys, owner)
    if not bases:
        return None
    kind, names = " or ".join(base.__name__ for base in bases), subclass_names(bases)
    hint = did_you_mean(found[1], names)
    known = f" (known: {', '.join(names)})" if len(names) <= _MOST_NAMES else ""
    path = "" if hint else " A class of your own goes by its import path, e.g. mymodule.MyClass."
    return f"{complaint.key}={found[1]!r} is no known {kind}.{hint}{path}{known}"


def _no_subclass(complaint: Complaint, found: re.Match[str]) -> str | None:
    return f"{complaint.key}={shown(complaint.value)} is no {found[1]}."


def _denied(complaint: Complaint, found: re.Match[str]) -> str:
    why = "configs must not name it"
    if found[2] == "*":
        why = STRICT_RULE
    return f"{complaint.key}: {found[1]} not allowed: {why}."


_TELLING: tuple[tuple[str, Callable[[Complaint, re.Match[str]], str | None]], ...] = (
    (r"Importing '([\w.]+)' is not allowed(?:, denied by the '(.+?)' entry)?", _denied),
    (r"Option '([^']+)' is not accepted", _unknown_setting),
    (r"the following arguments are required: (.*)", _missing_setting),
    (r"No module named '([^']+)'", _not_importable),
    (r"module '([^']+)' has no attribute '([^']+)'", _no_attribute),
    (r"Import path does not correspond to a subclass of (\w+)", _no_subclass),
    (_CLASS_NAME, _unknown_class),
)


def _rank(complaint: Complaint) -> tuple[int, int]:
    """Return how telling a complaint is (less is more), the innermost setting first."""
    depth = -len(complaint.keys)
    if _stray_setting(complaint) is not None:
        return 0, depth
    for rank, (pattern, _) in enumerate(_TELLING):
        if re.match(pattern, complaint.text):
            return rank, depth
    if complaint.text.startswith(_EXPECTED):
        return len(_TELLING) + 1, depth
    return len(_TELLING) + (2 if complaint.text.startswith("Not a valid subclass") else 0), depth


def _mistaken_for_class(complaint: Complaint, complaints: Sequence[Complaint]) -> bool:
    """Whether a value was tried as a class that may be something plain, and has no class's name."""
    found = re.match(_CLASS_NAME, complaint.text)
    if found is None or re.fullmatch(r"[A-Z]\w*|[A-Za-z_]\w*(\.\w+)+", found[1]):
        return False
    plain = re.compile("Expected a <class '(int|float|bool|str)'>")
    return any(plain.match(other.text) for other in complaints if other.keys == complaint.keys)


def _teach(complaint: Complaint, all_complaints: Sequence[Complaint]) -> str:
    if (stray := _stray_setting(complaint)) is not None:
        return stray
    for pattern, teach in _TELLING:
        found = re.match(pattern, complaint.text)
        if found and (text := teach(complaint, found)):
            return text
    if complaint.text.startswith(_EXPECTED):
        alike = [other.text for other in all_complaints if other.keys == complaint.keys]
        types = [text.removeprefix(_EXPECTED) for text in alike if text.startswith(_EXPECTED)]
        return f"{complaint.key} must be {any_of(types)}, got {shown(complaint.value)}."
    if complaint.value and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", complaint.value):
        return f"{complaint.key}: cannot import {complaint.value}: {complaint.text}."
    got = f" (got {shown(complaint.value)})" if complaint.value else ""
    return f"{complaint.key}: {complaint.text}{got}" if complaint.keys else complaint.text


def _stray_setting(complaint: Complaint) -> str | None:
    """Explain a setting that stands beside ``class_path`` in place of under ``init_args``."""
    value = literal(complaint.value or "")
    if not isinstance(value, dict) or "class_path" not in value:
        return None
    stray = [key for key in value if key not in ("class_path", "init_args", "dict_kwargs")]
    if not stray:
        return None
    hint = did_you_mean(stray[0], ["init_args"])
    belongs = "" if hint else " belongs under init_args:"
    example = f"{{class_path: {value['class_path']}, init_args: {{{stray[0]}: ...}}}}"
    return f"{complaint.key}.{stray[0]}{belongs or ' is unknown.'}{hint or f' {example}'}"


def _short(path: str | None) -> str:
    return (path or "it").rpartition(".")[2]


def _one_line(text: str) -> str:
    return unmark_references(" ".join(text.split()))
