"""Lightning's ``ddp`` for workers that train different clients and watch each other."""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import ProcessExitedException

from fedlightning.core.state import live_state
from fedlightning.engine.workers.collectives import Counters
from fedlightning.engine.workers.nodes import interface_towards
from fedlightning.engine.workers.processes import LAUNCHER, StartGuard, kill, why_ended
from fedlightning.engine.workers.watchdog import Watchdog
from fedlightning.errors import CheckpointError, WorkerLost

__all__ = ["FederatedDDPStrategy"]

_LONGEST_WAIT = timedelta(days=7)  # for a client of another worker; the watchdog sees the dead
_GOODBYE = 5.0  # seconds
_OF_A_CONNECTION = re.compile("gloo|nccl|connection|peer|socket|store", re.IGNORECASE)


class FederatedDDPStrategy(DDPStrategy):
    """Lightning's ``ddp`` without its wrapper: every worker trains clients of its own.

    Gradients are never synchronised, because two workers never train the same client. All that is
    taken from ``ddp`` is the launching of processes and their process group.

    Args:
        num_threads: CPU threads of torch in each process; ``None`` leaves Lightning's choice.
        deals_out: Whether workers get clients while a round is under way, and not before it, since
            they are not equally fast; with several nodes always.
        **kwargs: Arguments of DDPStrategy.

    Attributes:
        on_forced_exit: Says why the run ends and returns the exit code, where a process must be
            ended by force.
    """

    def __init__(self, num_threads: int | None = 1, deals_out: bool = False, **kwargs: Any) -> None:
        super().__init__(**{"timeout": _LONGEST_WAIT, **kwargs})
        self.on_forced_exit: Callable[[WorkerLost], int] | None = None
        self.counters: Counters | None = None
        self._deals_out = deals_out
        self._num_threads = num_threads
        self._watchdog: Watchdog | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._error: BaseException | None = None

    # -- the run -------------------------------------------------------------------------------

    def setup_environment(self) -> None:
        """Join the process group. Every rank logs the same numbers, so none has to be reduced."""
        warnings.filterwarnings("ignore", "It is recommended to use .*sync_dist=True")
        # a worker without clients in a round takes no step, and the schedule moves on all the same
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        self._take_children()
        if self.num_nodes > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
            assert self.cluster_environment is not None
            interface = interface_towards(self.cluster_environment.main_address)
            if interface is not None:
                os.environ["GLOO_SOCKET_IFNAME"] = interface
        with StartGuard(self._children, self._give_up):
            super().setup_environment()
            if self.world_size > 1:
                self._watchdog = Watchdog(
                    self.global_rank, self.world_size, self._children, self.on_forced_exit
                )
                several = self.num_nodes > 1 and self.cluster_environment is not None
                address = self.cluster_environment.main_address if several else None  # type: ignore[union-attr]
                self._watchdog.connect(_from_rank_0, address)
                if several or self._deals_out:
                    self.counters = _counters(self.global_rank, address or "127.0.0.1")
                atexit.register(_leave_group)
        if self._num_threads is not None:  # the launcher has set its own idea of it
            torch.set_num_threads(self._num_threads)

    def configure_ddp(self) -> None:
        """Start every worker from rank 0's weights; wrap nothing."""
        assert self.model is not None
        for tensor in live_state(self.model).values():
            if tensor.layout is torch.strided:
                dist.broadcast(tensor, src=0)
            else:
                tensor.copy_(_from_rank_0(tensor))

    def load_checkpoint(self, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a checkpoint's content; on several nodes rank 0 reads it for all.

        Raises:
            CheckpointError: It cannot be read.
        """
        if self.num_nodes == 1 or self.world_size == 1:
            return super().load_checkpoint(checkpoint_path, *args, **kwargs)
        read: dict[str, Any] | None = None
        failure: Exception | None = None
        if self.global_rank == 0:
            try:
                read = super().load_checkpoint(checkpoint_path, *args, **kwargs)
            except Exception as error:
                failure = error
        told, read = _from_rank_0((None if failure is None else str(failure), read))
        if failure is not None:
            raise failure
        if told is not None:
            raise CheckpointError(told)
        return read

    def on_exception(self, exception: BaseException) -> None:
        """Remember what ended the run."""
        super().on_exception(exception)
        self._error = exception
        self.why_lost(exception)  # while the others are still listened to

    def teardown(self) -> None:
        """Disconnect from the other workers."""
        super().teardown()
        if self._watchdog is not None:
            self._watchdog.stop(self._error)

    # -- the other workers ---------------------------------------------------------------------

    @property
    def watchdog(self) -> Watchdog | None:
        """What knows of lost workers; ``None`` before the workers are connected."""
        return self._watchdog

    @property
    def reports_errors(self) -> bool:
        """Whether this process is the one to say why the run ended."""
        return self._watchdog is None or self._watchdog.reports_errors

    @property
    def starts_workers(self) -> bool:
        """Whether this process has started all others, by running its own command again."""
        return len(self._children) == self.world_size - 1 > 0

    def why_lost(self, error: BaseException) -> WorkerLost | None:
        """Return the loss of a worker that an error comes from, if it does."""
        if isinstance(error, ProcessExitedException):
            rank, code = error.error_index, error.exit_code
            return WorkerLost(rank, f"worker {rank} {why_ended(code)}")
        if isinstance(error, WorkerLost) or self._watchdog is None:
            return None
        if isinstance(error, RuntimeError) and _OF_A_CONNECTION.search(str(error)):
            return self._watchdog.explain(seconds=3.0)
        return None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Tell workers that are started who has started them; name a worker that is lost.

        Raises:
            WorkerLost: In place of the broken connection that comes of it.
        """
        launches = "LOCAL_RANK" not in os.environ
        if launches:
            os.environ[LAUNCHER] = str(os.getpid())
        self._error = None
        try:
            yield
        except BaseException as error:
            lost = self.why_lost(error)
            if self._watchdog is not None:
                self._watchdog.stop(error)
            if lost is not None:
                raise lost from error
            raise
        finally:
            if launches:
                os.environ.pop(LAUNCHER, None)

    def _take_children(self) -> None:
        """Take the launched processes away from the launcher's own observer.

        That one would kill this process, without a word, when a worker ends with an error.
        """
        started = getattr(self.launcher, "procs", [])
        if started and all(isinstance(child, subprocess.Popen) for child in started):
            self._children = list(started)
            started.clear()  # the observer's list
            self.launcher.procs = list(self._children)  # type: ignore[union-attr]
            atexit.register(self.end_children)

    def end_children(self, seconds: float | None = None) -> None:
        """Wait for the processes that this one has started; end those that stay.

        Args:
            seconds: How long to wait; ``None`` means long after a run that went well.
        """
        if seconds is None:
            seconds = 30.0 if self._error is None else 5.0
        for child in self._children:
            try:
                child.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                kill(child.pid)
                child.wait()
        self._check_children()

    def _check_children(self) -> None:
        """End with exit code 5 if a worker has ended badly although this process has not."""
        if self._error is not None or hasattr(sys, "last_value"):
            return
        for rank, child in enumerate(self._children, start=1):
            if child.returncode:
                print(
                    f"error: worker {rank} {why_ended(child.returncode)} after the run",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                sys.stdout.flush()
                os._exit(5)

    def _give_up(self, rank: int, what: str) -> None:
        """End the process: the main thread waits for a worker that will not come."""
        lost = WorkerLost(rank, f"worker {rank} {what}" if rank >= 0 else what)
        try:
            code = self.on_forced_exit(lost) if self.on_forced_exit is not None else lost.exit_code
            if self.on_forced_exit is None:
                print(f"error: {lost}", file=sys.stderr, flush=True)
        finally:
            for child in self._children:
                child.send_signal(signal.SIGKILL)
            os._exit(code)


def _counters(rank: int, address: str) -> Counters:
    """Return a store in which all processes count; rank 0 serves it."""
    if rank == 0:
        served: Counters = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        _from_rank_0(served.port)  # type: ignore[attr-defined]  # of a TCPStore
        return served
    store: Counters = TCPStore(address, _from_rank_0(0), is_master=False)
    return store


def _leave_group() -> None:
    """Destroy the process group before the interpreter ends: Gloo's threads would abort it.

    After a run that failed, work of a lost worker may be waited for; then it is left.
    """
    if dist.is_initialized():
        leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(timeout=_GOODBYE)


def _from_rank_0(value: Any) -> Any:
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
