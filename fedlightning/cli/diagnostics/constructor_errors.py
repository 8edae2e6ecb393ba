"""Name the setting that a constructor refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from fedlightning.core.description import setting_names
from fedlightning.core.tracebacks import causes, raised_by_user
from fedlightning.errors import ConfigError, EnvironmentFailure, FedLightningError

__all__ = ["name_failing_setting"]

_EXTRAS = ("wandb", "tensorboard")  # of pyproject.toml
_BUGS = (NameError, AttributeError, AssertionError)


@contextmanager
def name_failing_setting(config: Any, groups: Mapping[str, str]) -> Iterator[None]:
    """Turn an exception of a constructor into an error that begins with a key.

    A constructor says ``lr must be > 0``; the user has set ``model.lr``. The traceback tells whose
    constructor failed, and the place of that class in the config is the key.

    Args:
        config: The parsed config of the command.
        groups: The keys of classes that the config does not name, by class name.

    Raises:
        ConfigError: Instead of another exception of a constructor.
        EnvironmentFailure: A package is missing.
        FedLightningError: A constructor raised it; the key precedes its text.
    """
    try:
        yield
    except Exception as error:
        cause = _first_cause(error)
        found = _constructor(cause, {**groups, **dict(_class_keys(config))})
        if found is None or (isinstance(cause, _BUGS) and not raised_by_user(cause)):
            raise cause from (error if error is not cause else error.__cause__)
        key, owner = found
        raise _with_key(cause, key, owner) from error


def _first_cause(error: BaseException) -> BaseException:
    """Return the FedLightningError in the chain of causes, else the first cause."""
    chain = list(causes(error))
    return next((link for link in chain if isinstance(link, FedLightningError)), chain[-1])


def _with_key(cause: BaseException, key: str, owner: type) -> FedLightningError:
    text = str(cause)
    if isinstance(cause, ModuleNotFoundError):
        extra = next((name for name in _EXTRAS if re.search(rf"\b{name}\b", text)), None)
        hint = f" Or: pip install fedlightning[{extra}]" if extra is not None else ""
        return EnvironmentFailure(f"{key}: {text}{hint}")
    if not isinstance(cause, FedLightningError):
        lightnings = key == "trainer" or type(cause).__name__ == "MisconfigurationException"
        described = f"{owner.__name__} cannot be built: {type(cause).__name__}: {text}"
        return ConfigError(f"{key}: {text if lightnings else described}")
    if text.startswith(f"{key}.") or text.startswith(f"{key.partition('.')[0]}."):
        return cause
    first = re.match(r"\w+", text)
    about_a_setting = first is not None and first[0] in setting_names(owner)
    return type(cause)(f"{key}.{text}" if about_a_setting else f"{key}: {text}")


def _constructor(error: BaseException, keys: Mapping[str, str]) -> tuple[str, type] | None:
    """Return key and class of the innermost active constructor of a class in the config."""
    found = None
    for instance in _under_construction(error.__traceback__):
        for cls in type(instance).__mro__:
            if cls.__name__ in keys:
                found = keys[cls.__name__], cls
                break
    return found


def _under_construction(trace: TracebackType | None) -> Iterator[Any]:
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name in ("__init__", "__post_init__") and "self" in frame.f_locals:
            yield frame.f_locals["self"]
        trace = trace.tb_next


def _class_keys(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield class name and key, as users write it, of each class in a config."""
    if isinstance(node, list):
        for number, item in enumerate(node):
            yield from _class_keys(item, f"{key}[{number}]" if len(node) > 1 else key)
        return
    values = vars(node) if hasattr(node, "__dict__") else node
    if not isinstance(values, Mapping):
        return
    if isinstance(values.get("class_path"), str):
        yield values["class_path"].rpartition(".")[2], key
    for name, value in values.items():
        inner = key if name == "init_args" else f"{key}.{name}".removeprefix(".")
        yield from _class_keys(value, inner)
