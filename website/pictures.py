"""A picture of each algorithm, drawn from its own choices: what is trained, shared and kept."""

from __future__ import annotations

import html
from collections.abc import Sequence

from fedlightning.algorithms import Algorithm
from fedlightning.core.messages import Down, Up

__all__ = ["picture"]

_LANES = {"private": ("shared network", "private network"), "": ("body", "norm", "head")}
_MERGE = {"mean": "mean", "weighted_mean": "weighted mean", "sum": "sum", "keep": "each client's",
          "concat": "all of them"}  # fmt: skip


def picture(algorithm: Algorithm, keeps: str) -> str:
    """Return an SVG of one round.

    Args:
        algorithm: The algorithm, with its own settings.
        keeps: What a client keeps, in words.
    """
    lanes = _LANES["private" if "private" in f"{algorithm.train} {algorithm.share}" else ""]
    trained, shared = (_chosen(part, lanes) for part in (algorithm.train, algorithm.share))
    width, left = 720, 24
    step = (470 - left) // len(lanes)
    parts = [
        f'<svg class="picture" role="img" viewBox="0 0 {width} 270" '
        f'aria-label="{html.escape(_in_words(algorithm, lanes, trained, shared, keeps))}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" class="tip"/></marker></defs>',
        _box(12, 10, 696, 62, "outer"),
        _text(left, 34, "server", "strong"),
        _text(left, 58, _server(algorithm)),
        _box(12, 150, 696, 110, "outer"),
        _text(490, 174, "client", "strong"),
    ]
    for at, lane in enumerate(lanes):
        x = left + at * step
        kind = "trained" if lane in trained else "still"
        parts += [_box(x, 182, step - 14, 44, kind), _text(x + 10, 209, lane, f"on-{kind}")]
        middle = x + (step - 14) / 2
        if lane in shared:
            parts += [_arrow(middle - 12, 72, 182), _arrow(middle + 12, 182, 72)]
            parts.append(_text(x + 10, 246, "trained, shared" if lane in trained else "shared"))
        else:
            what = "trained, kept" if lane in trained else "never trained"
            parts.append(_text(x + 10, 246, what if algorithm.keep is not False else "trained"))
    for line, text in enumerate(_messages(algorithm)):
        parts.append(_text(490, 96 + 18 * line, text, "note"))
    parts.append(_text(490, 198, "keeps:"))
    for line, text in enumerate(_wrapped(keeps or "nothing", 30)[:3]):
        parts.append(_text(490, 216 + 17 * line, text, "note"))
    return "".join([*parts, "</svg>"])


def _chosen(expression: str | None, lanes: Sequence[str]) -> set[str]:
    """Return the lanes that an expression over parts names."""
    found: set[str] = set()
    words = (expression or "full").split()
    for sign, word in zip(["+", *words[1::2]], words[::2], strict=True):
        if word == "body":
            named = {lane for lane in lanes if lane != "head"}
        elif word in ("full", "none"):
            named = set(lanes) if word == "full" else set()
        else:
            named = {lane for lane in lanes if lane.startswith(word)}
        found = found | named if sign == "+" else found - named
    return found


def _server(algorithm: Algorithm) -> str:
    weights = {"uniform": "every client alike", None: "by examples"}.get(algorithm.weights)
    mean = f"mean of what is shared, {weights or 'by examples'}"
    if algorithm.share == "none":
        mean = "no common model"
    optimizer = f", then a step of {type(algorithm.server).__name__}" if algorithm.server else ""
    return f"{mean}{optimizer}"


def _messages(algorithm: Algorithm) -> list[str]:
    texts = []
    for hook in algorithm.local or ():
        for message in hook.messages:
            if isinstance(message, Down):
                each = " (for each client)" if message.per_client else ""
                texts.append(f"↓ {message.name}{each}")
            elif isinstance(message, Up):
                texts.append(f"↑ {message.name} ({_MERGE.get(message.merge, message.merge)})")
    return texts[:3]


def _in_words(
    algorithm: Algorithm, lanes: Sequence[str], trained: set[str], shared: set[str], keeps: str
) -> str:
    def named(of: set[str]) -> str:
        return ", ".join(lane for lane in lanes if lane in of) or "nothing"

    also = "; ".join(_messages(algorithm))
    return (
        f"One round: clients train {named(trained)} and share {named(shared)}"
        f"{f', also {also}' if also else ''}; the server: {_server(algorithm)}; a client keeps "
        f"{keeps or 'nothing'}."
    )


def _box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="{kind}"/>'


def _text(x: float, y: float, text: str, kind: str = "plain") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{html.escape(text)}</text>'


def _arrow(x: float, start: float, end: float) -> str:
    inset = 4 if end > start else -4
    return f'<path d="M{x} {start + inset}V{end - inset}" class="arrow" marker-end="url(#tip)"/>'


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
