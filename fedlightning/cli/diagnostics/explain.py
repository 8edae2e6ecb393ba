"""Turn each error of the parser into one line with key, value and way out."""

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
    format_value,
    literal,
    read_complaints,
)
from fedlightning.cli.diagnostics.suggestions import (
    expected_classes,
    find_class,
    nearest_option,
    subclass_names,
)
from fedlightning.core.arguments import unknown_argument
from fedlightning.core.description import setting_names
from fedlightning.core.validation import USE_PYTORCH_LIGHTNING, other_lightning
from fedlightning.errors import ConfigError, did_you_mean, nearest

__all__ = ["explain"]

_MOST_NAMES = 60
_EXPECTED = "Expected a "
_OF_CLASSES = ["class_path", "init_args"]
_CLASS_NAME = "Expected a dot import path string: (.*)"
_NO_MAPPING = r"""Parser key "([^"]+)":.*Unable to load config ['"](.*?)['"]"""
_REQUIRED = (
    "{missing} required; pass a config, e.g. --config quickstart.yaml, or see configs/ and "
    "`python -m fedlightning --help`."
)


def explain(message: str, options: Sequence[str]) -> str:
    """Return one line for an error: the full key, the value, what is expected, the nearest name.

    Args:
        message: The message of jsonargparse.
        options: The names of all options.

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
    specific = [
        complaint for complaint in complaints if not _mistaken_for_class(complaint, complaints)
    ]
    if not any(complaint.keys for complaint in specific):
        return _one_line(message)
    return _one_line(_explain_complaint(min(specific, key=_rank), specific))


def _unrecognized(words: list[str], options: Sequence[str]) -> str:
    first = next((word for word in words if word.startswith("--")), None)
    if first is None:
        return f"unexpected {words[0]!r}: options are written --key=value."
    return _unknown_option(first[2:].partition("=")[0], options)


def _unknown_option(key: str, options: Sequence[str]) -> str:
    return f"unknown option {key}.{nearest_option(key, options)}"


def _bad_file(path: Path) -> str | None:
    """Return what is wrong with a file that a config names, if that is known."""
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


# -- complaints about a value, the most specific first ---------------------------------------


def _unknown_setting(complaint: Complaint, found: re.Match[str]) -> str | None:
    owner = find_class(complaint.owner) if complaint.owner else None
    first = found[1].partition(".")[0]
    names = setting_names(owner) if owner else []
    if nearest(first, names) is None and nearest(first, _OF_CLASSES) is not None:
        names = _OF_CLASSES
    return f"{complaint.key}.{found[1]}: {unknown_argument(_short(complaint.owner), first, names)}"


def _missing_setting(complaint: Complaint, found: re.Match[str]) -> str:
    first, *others = found[1].split(", ")
    more = f" (and {', '.join(others)})" if others else ""
    return f"{complaint.key}.{first} is required by {_short(complaint.owner)}{more}."


def _not_importable(complaint: Complaint, found: re.Match[str]) -> str:
    path, missing = complaint.owner or complaint.value or "", found[1]
    if path == missing or path.startswith(f"{missing}."):
        hint = "is it in the current folder or installed?"
        return f"{complaint.key}: cannot import {missing} for class_path={path!r}: {hint}"
    other = missing.partition(".")[0] == "lightning"
    way_out = f"; {USE_PYTORCH_LIGHTNING}" if other else ", which is not installed."
    return f"{complaint.key}: cannot import {path}: it needs {missing!r}{way_out}"


def _no_attribute(complaint: Complaint, found: re.Match[str]) -> str:
    hint = ""
    if complaint.owner and (bases := expected_classes(complaint.keys, None)):
        hint = did_you_mean(found[2], subclass_names(bases))
    file = getattr(sys.modules.get(found[1]), "__file__", None)
    where = f"{found[1]} ({file})" if file else found[1]
    return f"{complaint.key}: cannot import {found[2]} from {where}: no such name.{hint}"


def _unknown_class(complaint: Complaint, found: re.Match[str]) -> str | None:
    bases = _expected(complaint)
    if not bases:
        return None
    kind, names = " or ".join(base.__name__ for base in bases), subclass_names(bases)
    hint = did_you_mean(found[1], names)
    known = f" (known: {', '.join(names)})" if len(names) <= _MOST_NAMES else ""
    path = "" if hint else " Name your own class by its import path, e.g. mymodule.MyClass."
    return f"{complaint.key}={found[1]!r} is not a known {kind}.{hint}{path}{known}"


def _expected(complaint: Complaint) -> list[type]:
    owner = complaint.owner if complaint.owner_key < len(complaint.keys) else None
    return expected_classes(complaint.keys, owner)


def _no_subclass(complaint: Complaint, found: re.Match[str]) -> str | None:
    cls = find_class(complaint.owner or complaint.value or "")
    hint = f", but {other}" if (other := other_lightning(cls)) else "."
    return f"{complaint.key}={format_value(complaint.value)} is not a subclass of {found[1]}{hint}"


def _denied(complaint: Complaint, found: re.Match[str]) -> str:
    why = "configs must not name it"
    if found[2] == "*":
        why = STRICT_RULE
    return f"{complaint.key}: {found[1]} not allowed: {why}."


_SPECIFIC: tuple[tuple[str, Callable[[Complaint, re.Match[str]], str | None]], ...] = (
    (r"Importing '([\w.]+)' is not allowed(?:, denied by the '(.+?)' entry)?", _denied),
    (r"Option '([^']+)' is not accepted", _unknown_setting),
    (r"the following arguments are required: (.*)", _missing_setting),
    (r"No module named '([^']+)'", _not_importable),
    (r"module '([^']+)' has no attribute '([^']+)'", _no_attribute),
    (r"Import path does not correspond to a subclass of (\w+)", _no_subclass),
    (_CLASS_NAME, _unknown_class),
)


def _rank(complaint: Complaint) -> tuple[int, int]:
    """Return the rank of a complaint: the most specific first, then the innermost setting."""
    depth = -len(complaint.keys)
    if _stray_setting(complaint) is not None:
        return 0, depth
    for rank, (pattern, _) in enumerate(_SPECIFIC):
        if re.match(pattern, complaint.text):
            return rank, depth
    if complaint.text.startswith(_EXPECTED):
        return len(_SPECIFIC) + 1, depth
    return len(_SPECIFIC) + (2 if complaint.text.startswith("Not a valid subclass") else 0), depth


def _mistaken_for_class(complaint: Complaint, complaints: Sequence[Complaint]) -> bool:
    """Whether a value that may be a plain one was tried as a class, without a class's name."""
    found = re.match(_CLASS_NAME, complaint.text)
    if found is None or re.fullmatch(r"[A-Z]\w*|[A-Za-z_]\w*(\.\w+)+", found[1]):
        return False
    if (bases := _expected(complaint)) and nearest(found[1], subclass_names(bases)) is not None:
        return False
    plain = re.compile("Expected a <class '(int|float|bool|str)'>")
    return any(plain.match(other.text) for other in complaints if other.keys == complaint.keys)


def _explain_complaint(complaint: Complaint, all_complaints: Sequence[Complaint]) -> str:
    if (stray := _stray_setting(complaint)) is not None:
        return stray
    for pattern, answer in _SPECIFIC:
        found = re.match(pattern, complaint.text)
        if found and (text := answer(complaint, found)):
            return text
    if complaint.text.startswith(_EXPECTED):
        alike = [other.text for other in all_complaints if other.keys == complaint.keys]
        types = [text.removeprefix(_EXPECTED) for text in alike if text.startswith(_EXPECTED)]
        return f"{complaint.key} must be {any_of(types)}, got {format_value(complaint.value)}."
    if complaint.value and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", complaint.value):
        return f"{complaint.key}: cannot import {complaint.value}: {complaint.text}."
    got = f" (got {format_value(complaint.value)})" if complaint.value else ""
    return f"{complaint.key}: {complaint.text}{got}" if complaint.keys else complaint.text


def _stray_setting(complaint: Complaint) -> str | None:
    """Explain a setting that is beside ``class_path`` instead of under ``init_args``."""
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
