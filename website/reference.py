"""Pages of the API, one for each public package."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import FunctionType

__all__ = ["reference_pages"]

_PAGES = {
    "fedlightning": ("FederatedTrainer", "FederatedModule", "Federation"),
    "fedlightning.models": None, "fedlightning.datamodules": None, "fedlightning.callbacks": None,
    "fedlightning.federation": None, "fedlightning.federation.uplink": None,
    "fedlightning.algorithms.aggregation": None, "fedlightning.algorithms.method": None,
    "fedlightning.privacy": None, "fedlightning.personalization.models": None,
    "fedlightning.storage.checkpoint_io": None, "fedlightning.errors": None,
}  # fmt: skip


def reference_pages() -> Iterator[tuple[str, str, str]]:
    """Yield path, title and Markdown of the pages."""
    seen: set[str] = set()
    for package, given in _PAGES.items():
        names = given or list(_public(package))
        title = package.removeprefix("fedlightning.") if given is None else "the five lines"
        parts = [f"# {package if given is None else 'The classes of the five lines'}", ""]
        if given is None:
            text = (importlib.import_module(package).__doc__ or "").strip()
            parts += [text.partition("\n")[0], ""]
        for name in names:
            whole = _defined(name if given is None else f"fedlightning.{name}")
            if whole not in seen:
                parts += [f"::: {whole}", ""]
            seen.add(whole)
        yield f"reference/{title.replace(' ', '_')}.md", title, "\n".join(parts)


def _public(package: str) -> Iterator[str]:
    module = importlib.import_module(package)
    for name in sorted(module.__all__, key=str.lower):
        value = getattr(module, name)
        if isinstance(value, (type, FunctionType)):
            yield f"{package}.{name}"


def _defined(whole: str) -> str:
    """Return where a name is defined, which the reader of the sources needs."""
    package, _, name = whole.rpartition(".")
    value = getattr(importlib.import_module(package), name)
    return f"{value.__module__}.{value.__qualname__}"
