"""An extension of griffe: docstrings in this repository's manner, as mkdocstrings reads them."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

from website.docstrings import markdown_of

__all__ = ["ReadableDocstrings"]


class ReadableDocstrings(Extension):
    """Draws formulas, shortens roles, and calls the section of examples as griffe does."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of an object."""
        if obj.docstring is None:
            return
        pieces = re.split(r"^(Example:)$", obj.docstring.value, flags=re.MULTILINE)
        text = [markdown_of(pieces[0])]
        for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
            example, *rest = re.split(r"^(?=\S)", body, maxsplit=1, flags=re.MULTILINE)
            text += [f"{name[:-1]}s:", example, *map(markdown_of, rest)]
        obj.docstring.value = "".join(text)
