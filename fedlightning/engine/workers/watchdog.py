"""Workers that watch each other: one that dies or stops ends the run, and is named."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedlightning.engine.workers.processes import host_name, is_stopped, kill, why_ended
from fedlightning.errors import FedLightningError, WorkerLost

__all__ = ["Watchdog", "silence_limit"]

_GRACE = 6.0  # seconds for a process to end by itself, once the run has to end
_PATIENCE = 600.0  # seconds for a worker that runs, on this machine, but says nothing


def silence_limit() -> float:
    """Return after how many seconds a silent worker counts as lost.

    ``FEDLIGHTNING_WORKER_SILENCE`` sets it, 20 by default. Signs of life come from a thread of
    their own every tenth of it, so that a long step is none of its business.
    """
    try:
        return max(float(os.environ.get("FEDLIGHTNING_WORKER_SILENCE", "20")), 0.1)
    except ValueError:
        return 20.0


@dataclass
class _Peer:
    """Another worker: how to reach it, and what is known of it."""

    rank: int
    connection: socket.socket
    pid: int = 0
    host: str = ""
    at: tuple[int | None, int] | None = None  # client, if one is trained, and round
    seen: float = field(default_factory=time.monotonic)
    buffer: bytes = b""


class Watchdog:
    """Keeps a connection between rank 0 and every other worker, for as long as they work together.

    A killed process closes its connection, a stopped one falls silent. Whoever notices tells the
    others; then :attr:`lost` says what happened, :meth:`check` raises it between two local steps,
    and a process that has not ended some seconds later, because it waits where Python cannot
    interrupt it, is ended by force. A stopped worker is killed: the run that it could continue
    is over.

    Args:
        rank: This worker.
        size: Number of workers.
        children: The workers that this process has started.
        last_words: Called before the process is ended by force; says why and returns the exit code.

    Attributes:
        lost: What has happened to another worker, so that the run cannot go on.
        on_sigterm: Called when another worker got SIGTERM.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        children: Sequence[subprocess.Popen[bytes]] = (),
        last_words: Callable[[WorkerLost], int] | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self.lost: WorkerLost | None = None
        self.on_sigterm: Callable[[], None] = lambda: None
        self._children = {child.pid: child for child in children}
        self._last_words = last_words
        self._silence = silence_limit()
        self._peers: dict[int, _Peer] = {}
        self._outbox: deque[dict[str, Any]] = deque()
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._over = threading.Event()
        self._known = threading.Event()
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None

    # -- from the main thread ------------------------------------------------------------------

    def connect(self, share: Callable[[Any], Any], address: str | None = None) -> None:
        """Connect the workers; all of them must call this.

        Args:
            share: Gives rank 0's value to all.
            address: Rank 0's name on the network; ``None`` if all workers are on one machine.
        """
        if self.rank == 0:
            server = socket.create_server(("127.0.0.1" if address is None else "", 0))
            token = secrets.token_hex(16)
            share((address or "127.0.0.1", server.getsockname()[1], token))
            with server:
                self._accept(server, token)
        else:
            host, port, token = share(None)
            connection = socket.create_connection((host, port), timeout=60)
            self._peers[0] = _Peer(0, connection)
            hello = {"token": token, "rank": self.rank, "pid": os.getpid(), "host": host_name()}
            connection.sendall(json.dumps(hello).encode() + b"\n")
            with connection.makefile("rb", buffering=0) as lines:
                answer = json.loads(lines.readline())
            self._peers[0].pid, self._peers[0].host = answer["pid"], answer["host"]
        for peer in self._peers.values():
            peer.connection.settimeout(1.0)
            peer.seen = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def _accept(self, server: socket.socket, token: str) -> None:
        server.settimeout(60)
        while len(self._peers) < self.size - 1:
            connection, _ = server.accept()
            connection.settimeout(60)
            try:
                with connection.makefile("rb", buffering=0) as lines:
                    hello = json.loads(lines.readline(1000))
                if not secrets.compare_digest(str(hello.get("token")), token):
                    raise ValueError("a stranger")
            except (ValueError, AttributeError, OSError):
                connection.close()
                continue
            answer = {"pid": os.getpid(), "host": host_name()}
            connection.sendall(json.dumps(answer).encode() + b"\n")
            rank = int(hello["rank"])
            self._peers[rank] = _Peer(rank, connection, int(hello["pid"]), str(hello["host"]))

    def announce(self, client: int | None, round_index: int) -> None:
        """Let the others know of the client at work, should this process not live to tell."""
        self._post({"at": [client, round_index]})

    def pass_on_sigterm(self) -> None:
        """Have every worker stop after the client at work; may be called by a signal handler."""
        self._post({"term": True})

    def check(self) -> None:
        """Raise what has happened to another worker, if anything has.

        Raises:
            WorkerLost: If the run cannot go on.
        """
        if self.lost is not None:
            raise self.lost

    def explain(self, seconds: float) -> WorkerLost | None:
        """Return what has happened to another worker, if it is known after so many seconds."""
        self._known.wait(seconds)
        return self.lost

    def stop(self, error: BaseException | None = None) -> None:
        """Stop: the work is done, or ends with an error that is passed to the other workers."""
        if self._thread is not None and not self._over.is_set():
            self._post({"bye": None if error is None else _as_ending(error)})
            self._over.set()
            with contextlib.suppress(OSError):
                self._wake.send(b".")
            self._thread.join(timeout=2)

    @property
    def reports_errors(self) -> bool:
        """Whether this process is the one to say why the run ended."""
        rank_0_is_gone = self.lost is not None and self.lost.rank == 0
        return self.rank == 0 or self._thread is None or (rank_0_is_gone and self.rank == 1)

    def _post(self, message: dict[str, Any]) -> None:
        self._outbox.append(message)
        with contextlib.suppress(OSError):  # full: the thread is about to wake up anyway
            self._wake.send(b".")

    # -- in the thread -------------------------------------------------------------------------

    def _watch(self) -> None:
        beat = min(self._silence / 10, 1.0)
        awake = sent = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for peer in self._peers.values():
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            while not self._over.is_set() or self._outbox:
                ready = selector.select(timeout=beat)
                now = time.monotonic()
                if now - awake > max(10 * beat, 2.0):  # it was this process that slept
                    for peer in self._peers.values():
                        peer.seen = now
                awake = now
                for key, _ in ready:
                    if key.data is None:
                        self._woken.recv(4096)
                    elif not self._hear(key.data):
                        selector.unregister(key.fileobj)
                        self._peers.pop(key.data.rank).connection.close()
                while self._outbox:
                    self._tell(self._outbox.popleft())
                if now - sent >= beat:
                    self._tell({})
                    sent = now
                self._look_for_the_silent(now)
                if self.lost is not None and now > self._deadline:
                    self._end_by_force(self.lost)
        for end in (self._wake, self._woken, *(peer.connection for peer in self._peers.values())):
            end.close()

    def _tell(self, message: dict[str, Any], but: int | None = None) -> None:
        line = json.dumps(message).encode() + b"\n"
        for peer in self._peers.values():
            if peer.rank != but:
                with contextlib.suppress(OSError):  # gone or stopped: noticed where it is read
                    peer.connection.sendall(line)

    def _hear(self, peer: _Peer) -> bool:
        """Take in what a worker says; false if it will not say anything any more."""
        try:
            received = peer.connection.recv(65536)
        except OSError:
            received = b""
        if not received:
            self._declare(peer, self._how_it_ended(peer))
            return False
        peer.seen = time.monotonic()
        *lines, peer.buffer = (peer.buffer + received).split(b"\n")
        understood = [self._understand(peer, json.loads(line)) for line in lines]
        return all(understood)

    def _understand(self, peer: _Peer, message: dict[str, Any]) -> bool:
        if "at" in message:
            peer.at = (message["at"][0], message["at"][1])
        if "term" in message:
            if self.rank == 0:
                self._tell(message, but=peer.rank)
            self.on_sigterm()
        if "lost" in message:
            self._conclude(WorkerLost(*message["lost"]))
        if "bye" in message:
            if (ending := message["bye"]) is not None:
                self._declare(peer, f"failed: {ending['text']}", ending["code"], died=False)
            return False
        return True

    def _look_for_the_silent(self, now: float) -> None:
        for peer in list(self._peers.values()):
            silent = now - peer.seen
            if silent <= self._silence or self.lost is not None:
                continue
            stopped = is_stopped(peer.pid) if peer.host == host_name() else None
            if stopped is False and silent <= _PATIENCE:
                continue  # busy in a way that lets no thread run; were it dead we would know
            how = "was stopped and gave" if stopped else "gave"
            self._declare(peer, f"{how} no sign of life for {silent:.0f} s")
            if peer.host == host_name():
                kill(peer.pid)

    def _how_it_ended(self, peer: _Peer) -> str:
        child = self._children.get(peer.pid)
        if child is None:
            return "died"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=2)
        return why_ended(child.returncode)

    def _declare(self, peer: _Peer, what: str, code: int = 5, died: bool = True) -> None:
        """A worker is lost: tell the others, and end."""
        if self.lost is not None or self._over.is_set():
            return
        where = ""
        if died and peer.at is not None:
            client, round_index = peer.at
            where = "" if client is None else f", client {client}"
            where += f", round {round_index}"
        text = f"worker {peer.rank} {what}{where}"
        self._tell({"lost": [peer.rank, text, code, died]}, but=peer.rank)
        self._conclude(WorkerLost(peer.rank, text, code, died))

    def _conclude(self, lost: WorkerLost) -> None:
        if self.lost is None:
            self._deadline = time.monotonic() + (_GRACE if lost.died else 2 * _GRACE)
            self.lost = lost
            self._known.set()

    def _end_by_force(self, lost: WorkerLost) -> None:
        code = lost.exit_code
        try:
            if self._last_words is not None:
                code = self._last_words(lost)
            elif self.reports_errors:
                print(f"error: {lost}", file=sys.stderr, flush=True)
        finally:
            for child in self._children.values():
                child.kill()
            os._exit(code)


def _as_ending(error: BaseException) -> dict[str, Any]:
    """Return an error as what the other workers are told of it."""
    code = 5
    if isinstance(error, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    elif isinstance(error, SystemExit):  # SIGTERMException is one
        code = error.code if isinstance(error.code, int) else 128 + signal.SIGTERM
    elif isinstance(error, FedLightningError):
        code = error.exit_code
    text = (
        str(error) if isinstance(error, FedLightningError) else f"{type(error).__name__}: {error}"
    )
    return {"code": code, "text": " ".join(text.split())[:1000]}
