"""Help, version and unknown commands: answers that need neither the parser nor torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fedlightning._version import __version__
from fedlightning.cli.config.recipes import recipe_title, shipped_recipes, shipped_studies
from fedlightning.errors import did_you_mean

__all__ = ["COMMANDS", "Answer", "answer", "usage"]

COMMANDS = {
    "fit": "train: rounds of local training and aggregation, then personalization",
    "validate": "evaluate a checkpoint on the clients' validation data",
    "test": "evaluate a checkpoint on the clients' test data, with and without personalization",
    "personalize": "fine-tune personal models from a checkpoint, also for new clients",
    "predict": "write a checkpoint's predictions on the clients' test data to a file",
    "export": "write a client's full model, or the global one, for use elsewhere",
    "check": "list the classes that a config would import, and say whether it is accepted",
    "compare": "run a study: several algorithms, seeds and settings, and a report on them",
    "deploy": "write an app that Flower runs on a server and nodes, or try it on this machine",
    "influence": "replay a run without one client after another, beside the estimates of that",
    "report": "compare finished runs: tables, tests and figures in one HTML file",
    "tune": "choose each variant's settings on validation data, for compare (extra tune)",
    "watch": "show runs under way in the browser: progress, curves, clients, failures",
}
_QUICKSTART = "python -m fedlightning fit --config quickstart.yaml"
_EXPECTED = f"expected one of {', '.join(COMMANDS)}"


@dataclass(frozen=True)
class Answer:
    """The text that answers a command, and its exit code."""

    text: str
    exit_code: int


def usage(command: str = "COMMAND") -> str:
    """Return the usage of a command."""
    return f"python -m fedlightning {command} --config FILE [--key=value ...]"


def answer(arguments: Sequence[str]) -> Answer | None:
    """Return the answer to a command line that runs nothing, else ``None``.

    Args:
        arguments: The arguments after the program's name.

    Example:
        >>> answer(["fti"]).text  # doctest: +ELLIPSIS
        "error: unknown command 'fti'; expected one of fit, ... Did you mean 'fit'?"
        >>> answer(["fit", "--config", "mine.yaml"]) is None
        True
    """
    if not arguments:
        return Answer(
            f"usage: {usage()}\ntry:   {_QUICKSTART}\nmore:  --help\nerror: {_EXPECTED}", 2
        )
    first = arguments[0]
    if first in ("-h", "--help", "help"):
        return Answer(_help(), 0)
    if first in ("-V", "--version", "version"):
        return Answer(f"fedlightning {__version__}", 0)
    if first in COMMANDS:
        return None
    if first.startswith("-"):
        return Answer(f"error: the command must precede {first}; {_EXPECTED}.", 2)
    hint = did_you_mean(first, COMMANDS)
    return Answer(f"error: unknown command {first!r}; {_EXPECTED}.{hint}", 2)


def _help() -> str:
    recipes = {name: recipe_title(path) for name, path in shipped_recipes().items()}
    return "\n".join(
        [
            f"fedlightning {__version__}: federated learning as a PyTorch Lightning plugin",
            "",
            f"usage: {usage()}",
            "",
            "commands",
            *_columns(COMMANDS),
            "",
            "quickstart",
            f"  {_QUICKSTART}",
            "",
            "recipes of the package; --config finds them by name from any folder",
            *_columns(recipes),
            "",
            "studies of the package, for compare",
            *_columns({name: recipe_title(path) for name, path in shipped_studies().items()}),
            "",
            "more",
            *_columns(
                {
                    "fit --help": "every option",
                    "fit --model.help MLP": "the settings of one class; --data.help Digits, ...",
                    "fit --config FILE --print_config": "every setting, as a config that runs",
                    "fit --ckpt_path last": "resume the newest run",
                    "FEDLIGHTNING_DEBUG=1": "environment variable: tracebacks, and Lightning's log",
                }
            ),
        ]
    )


def _columns(rows: dict[str, str]) -> list[str]:
    width = max((len(name) for name in rows), default=0)
    most = _terminal_width()
    return [f"  {name:<{width}}  {text}"[:most].rstrip() for name, text in rows.items()]


def _terminal_width() -> int:
    try:
        return max(os.get_terminal_size().columns, 60)
    except OSError:
        return 100
