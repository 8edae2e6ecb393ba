"""``python -m fedlightning``: run a command, report an error in one line, return an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from fedlightning.cli.terminal import (
    debugging,
    is_first_process,
    print_error,
    print_note,
    print_warning,
    quiet,
)
from fedlightning.cli.usage import answer

if TYPE_CHECKING:
    from fedlightning.cli.run_watch import RunMonitor

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0: success. 2: usage or config. 3: data. 4: checkpoint. 5: federation or training.
    6: environment or I/O. 130: interrupted. 143: terminated. 1: a bug in fedlightning.

    Args:
        argv: The arguments after the program's name; by default those of this process.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        fedlightning ...
        0
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if (known := answer(arguments)) is not None:
        print(known.text, file=sys.stderr if known.exit_code else sys.stdout)
        return known.exit_code
    watches: list[RunMonitor] = []
    words = arguments if argv is None else None  # only the command's own process restarts
    report = partial(_report, watches=watches, words=words)
    with _signals(), quiet():
        try:
            return _run(arguments, watches, report)
        except BaseException as error:
            return report(error)


def _run(
    arguments: Sequence[str], watches: list[RunMonitor], report: Callable[[BaseException], int]
) -> int:
    from fedlightning.cli.config.command import read_command

    if arguments[0] in ("compare", "report", "influence", "tune"):
        return _study(arguments)
    if arguments[0] == "deploy":
        return _deploy(arguments)
    if arguments[0] == "watch":
        from fedlightning.watching.watch_command import watch

        return watch(arguments[1:])
    command = read_command(arguments)
    for warning in command.warnings if is_first_process() else ():
        print_warning(warning)
    _make_user_classes_importable()
    if command.name == "check":
        from fedlightning.cli.check import check

        print(check(command))
        return 0
    if command.name == "export":
        from fedlightning.cli.export import export

        print(export(command))
        return 0
    from fedlightning.cli.federated_cli import run_command  # torch and Lightning: seconds

    run_command(command, watches, report)
    return 0


def _study(arguments: Sequence[str]) -> int:
    _make_user_classes_importable()
    match arguments[0]:
        case "compare":
            from fedlightning.studies.compare_command import compare as command
        case "influence":
            from fedlightning.studies.influence_command import influence as command
        case "tune":
            from fedlightning.studies.tune_command import tune_command as command
        case _:
            from fedlightning.studies.report_command import report as command
    return command(arguments[1:])


def _deploy(arguments: Sequence[str]) -> int:
    from importlib.util import find_spec

    from fedlightning.errors import EnvironmentFailure

    if find_spec("flwr") is None:
        raise EnvironmentFailure(
            "deploy needs Flower, and Python 3.11 or newer: pip install 'fedlightning[flower]'."
        )
    _make_user_classes_importable()
    from fedlightning.flower.deploy_command import deploy

    return deploy(arguments[1:])


def _make_user_classes_importable() -> None:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's classes, also for the installed script


def _report(error: BaseException, watches: list[RunMonitor], words: Sequence[str] | None) -> int:
    from fedlightning.cli.exit_codes import diagnose

    watch = watches[0] if watches else None
    failure = diagnose(error, watch)
    if watch is not None and failure.exit_code:
        watch.remove_empty_run()
    if watch is not None and words is not None and watch.trainer is not None:
        from fedlightning.cli.relaunch import relaunch_if_wanted

        relaunch_if_wanted(error, watch, words)
    if failure.exit_code and debugging():
        traceback.print_exception(error)
    reports_errors = watch is None or watch.reports_errors
    if not (is_first_process() or (failure.leaves_work and reports_errors)):
        return failure.exit_code  # the same on all ranks; the first one reports it
    if failure.text:
        (print_error if failure.is_error else print_note)(failure.text)
    if watch is not None and failure.leaves_work and (saved := watch.saved()):
        print_note(saved)
    return failure.exit_code


@contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGTERM into an exception inside the ``with`` block.

    A running Trainer installs its own handler, which calls this one too: it stops after the current
    client.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_term(signum: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGTERM) is on_term:
            raise SystemExit(128 + signum)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
