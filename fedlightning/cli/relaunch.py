"""Restart a command from its last checkpoint when one of its workers has died."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fedlightning.cli.run_watch import RunMonitor
from fedlightning.cli.terminal import print_warning
from fedlightning.engine.workers.strategy import FederatedDDPStrategy
from fedlightning.errors import WorkerLost
from fedlightning.trainer import FederatedTrainer

__all__ = ["relaunch_if_wanted", "resuming"]

_COUNT = "FEDLIGHTNING_RELAUNCHES"


def relaunch_if_wanted(error: BaseException, watch: RunMonitor, words: Sequence[str]) -> None:
    """Replace this process by the same command, resumed, if ``on_client_failure`` tolerates it.

    A process group cannot admit another process, so all workers restart. The interrupted round is
    run again, with the same bits. Returns if the command is not to be restarted.

    Args:
        error: The error that ended the run.
        watch: The run's monitor.
        words: The arguments after the program's name.
    """
    trainer = watch.trainer
    if not (isinstance(error, WorkerLost) and error.died and isinstance(trainer, FederatedTrainer)):
        return
    strategy, federation = trainer.strategy, trainer.federation
    if not isinstance(strategy, FederatedDDPStrategy) or not strategy.starts_workers:
        return
    done = int(os.environ.get(_COUNT, "0"))
    if federation.on_client_failure == "fail" or trainer.state.fn != "fit":
        return
    if done >= federation.max_retries:
        return
    checkpoint = watch.last_checkpoint()
    source = checkpoint or watch.checkpoint or "the start"
    print_warning(
        f"{error}; restarting all workers from {source} ({done + 1} of "
        f"{federation.max_retries} times)"
    )
    strategy.end_children(seconds=5.0)
    environment = {**watch.environment, _COUNT: str(done + 1)}
    _become(resuming(words, None if checkpoint is None else str(checkpoint)), environment)


def resuming(words: Sequence[str], checkpoint: str | None) -> list[str]:
    """Return a command's words with ``checkpoint`` as the one to start from, if there is one.

    Example:
        >>> resuming(["fit", "--ckpt_path", "a.ckpt", "--model=MLP"], "b.ckpt")
        ['fit', '--model=MLP', '--ckpt_path', 'b.ckpt']
        >>> resuming(["fit", "--ckpt_path=a.ckpt"], None)
        ['fit', '--ckpt_path=a.ckpt']
    """
    if checkpoint is None:
        return list(words)
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--ckpt_path":
            next(rest, None)
        elif not word.startswith("--ckpt_path="):
            kept.append(word)
    return [*kept, "--ckpt_path", checkpoint]


def _become(words: Sequence[str], environment: dict[str, str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "fedlightning", *words], environment)
