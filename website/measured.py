"""What has been measured of an algorithm: rows of the tables in docs/results.md."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["measured", "tables"]

_STUDY = "Sixteen algorithms on Fashion-MNIST"
_MORE = "Thirteen more algorithms on the digits"
_SYSTEMS = "Ten systems at a glance"
_PUBLISHED = {
    "LGFedAvg": "LG-FedAvg", "PerFedAvg": "Per-FedAvg", "PFedMe": "pFedMe", "PFedHR": "pFedHR",
    "LocalOnly": "Local-only", "IterativeDataSmoothing": "IDS", "PersAFL": "PersA-FL",
}  # fmt: skip


def tables(page: Path) -> dict[str, list[list[str]]]:
    """Return the first table of each section of a page, by the section's title."""
    found = {}
    for section in page.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        rows = re.findall(r"^\|(.*)\|$", body.split("\n## ")[0], re.MULTILINE)
        first = re.search(r"(?:^\|.*\|\n)+", f"{body}\n", re.MULTILINE)
        if rows and first:
            lines = first[0].strip().splitlines()
            found[title] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return found


def measured(name: str, results: dict[str, list[list[str]]]) -> str:
    """Return what the results say of an algorithm, as Markdown; empty if they say nothing.

    Args:
        name: Its class.
        results: The tables of ``docs/results.md``.
    """
    called = _PUBLISHED.get(name, name)
    parts = []
    for section in (_STUDY, _MORE, _SYSTEMS):
        header, rule, *rows = results[section]
        own = [row for row in rows if row[0].lower() == called.lower()]
        if own:
            anchor = re.sub(r"[^a-z0-9-]+", "-", section.lower())
            beside = [row for row in rows if row[0] == "FedAvg" and called != "FedAvg"]
            lines = [header, rule, *own, *beside]
            parts.append(f"[{section}](../results.md#{anchor}):\n")
            parts += [f"|{'|'.join(line)}|" for line in lines]
            parts.append("")
    for title in results:
        if title.lower().startswith((f"{called.lower()}:", f"{name.lower()}:")):
            anchor = re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()))
            parts.append(f"In detail, with spread and what did not appear: "
                         f"[{title}](../results.md#{anchor}).\n")  # fmt: skip
    return "\n".join(parts)
