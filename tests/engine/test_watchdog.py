"""Workers that watch each other, as threads of one process."""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time

import pytest

from fedlightning.engine.workers.processes import host_name, is_stopped, why_ended
from fedlightning.engine.workers.watchdog import Watchdog, silence_limit
from fedlightning.errors import FederationError, WorkerLost


@pytest.fixture
def connect(monkeypatch):
    """Connect so many watchdogs; they are stopped after the test."""
    monkeypatch.setenv("FEDLIGHTNING_WORKER_SILENCE", "0.5")
    dogs: list[Watchdog] = []

    def connect_(size: int, strangers: int = 0) -> list[Watchdog]:
        dogs.extend(Watchdog(rank, size) for rank in range(size))
        shared: queue.Queue[tuple[str, int, str]] = queue.Queue()

        def first(value):
            for _ in range(strangers):
                with socket.create_connection(value[:2]) as stranger:
                    stranger.sendall(b'{"token": "guess", "rank": 1}\n')
            for _ in range(size - 1):
                shared.put(value)

        start = [threading.Thread(target=dogs[0].connect, args=(first,))]
        start += [
            threading.Thread(target=dog.connect, args=(lambda _: shared.get(),)) for dog in dogs[1:]
        ]
        for thread in start:
            thread.start()
        for thread in start:
            thread.join()
        return dogs

    yield connect_
    for dog in dogs:
        dog.stop()


def die(dog: Watchdog) -> None:
    """Close a worker's connections, as the kernel does when a process ends."""
    for peer in list(dog._peers.values()):  # its thread lets go of them meanwhile
        peer.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("strangers", [0, 2])
def test_workers_that_live_have_nothing_to_say(connect, strangers):
    dogs = connect(3, strangers)
    time.sleep(1.2)
    for dog in dogs:
        dog.check()


def test_all_hear_of_one_that_died_with_its_client_and_round(connect):
    dogs = connect(3)
    dogs[2].announce(client=7, round_index=4)
    time.sleep(0.2)
    dogs[2]._over.set()  # says no goodbye
    die(dogs[2])
    for dog in dogs[:2]:
        assert dog.explain(5) is not None
        with pytest.raises(WorkerLost, match=r"^worker 2 died, client 7, round 4$") as lost:
            dog.check()
        assert (lost.value.rank, lost.value.exit_code, lost.value.died) == (2, 5, True)
    assert [dog.reports_errors for dog in dogs[:2]] == [True, False]


def test_the_second_speaks_when_the_first_is_lost(connect):
    dogs = connect(2)
    dogs[0]._over.set()
    die(dogs[0])
    assert "worker 0 died" in str(dogs[1].explain(5))
    assert dogs[1].reports_errors


def test_goodbyes_are_no_losses(connect):
    dogs = connect(3)
    dogs[1].stop()
    time.sleep(1.2)
    dogs[0].check()
    dogs[2].check()


def test_an_error_of_one_is_told_to_all_with_its_exit_code(connect):
    dogs = connect(3)
    dogs[1].stop(FederationError("client 3, round 1: bad luck"))
    for dog in (dogs[0], dogs[2]):
        lost = dog.explain(5)
        assert str(lost) == "worker 1 failed: client 3, round 1: bad luck"
        assert (lost.exit_code, lost.died) == (5, False)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (KeyError("x"), 5)]
)
def test_how_one_ends_is_how_the_others_end(connect, error, code):
    dogs = connect(2)
    dogs[1].stop(error)
    assert dogs[0].explain(5).exit_code == code


def test_sigterm_reaches_all(connect):
    dogs, told = connect(3), queue.Queue()
    for dog in dogs:
        dog.on_sigterm = lambda rank=dog.rank: told.put(rank)
    dogs[1].pass_on_sigterm()
    assert {told.get(timeout=5), told.get(timeout=5)} == {0, 2}


@pytest.mark.parametrize(
    ("host", "lost"), [("elsewhere", True), (host_name(), False)], ids=["other host", "this one"]
)
def test_a_silent_worker_is_lost_unless_it_is_seen_to_run(monkeypatch, host, lost):
    monkeypatch.setenv("FEDLIGHTNING_WORKER_SILENCE", "0.5")
    dog, shared = Watchdog(0, 2), queue.Queue()
    thread = threading.Thread(target=dog.connect, args=(shared.put,))
    thread.start()
    host_, port, token = shared.get()
    silent = socket.create_connection((host_, port))
    hello = {"token": token, "rank": 1, "pid": os.getpid(), "host": host}
    silent.sendall(json.dumps(hello).encode() + b"\n")
    thread.join()
    assert (dog.explain(1.5) is not None) is lost
    assert not lost or str(dog.lost) == "worker 1 gave no sign of life for 1 s"
    dog.stop()
    silent.close()


def test_ends_and_states_of_processes():
    assert why_ended(-11) == "died (signal 11)"
    assert is_stopped(2**22 + 1) is None
    assert not is_stopped(os.getpid())


@pytest.mark.parametrize(("text", "seconds"), [("3", 3.0), ("0", 0.1), ("soon", 20.0)])
def test_the_silence_limit_is_a_number(monkeypatch, text, seconds):
    monkeypatch.setenv("FEDLIGHTNING_WORKER_SILENCE", text)
    assert silence_limit() == seconds
