"""Orders over Flower's grid: pushed to all nodes at once, answers pulled as they come."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.deployment.messages import Answer, Order, Passport
from fedlightning.errors import FederationError
from fedlightning.federation.failures import ClientFailure, Policy
from fedlightning.flower.wire import Rules, decode_answer, decode_passport, encode_order

__all__ = ["PERSONALIZE", "PHASE", "TRAIN", "WHO", "GridNodes", "meet"]

WHO, TRAIN, PERSONALIZE, PHASE = "query.who", "train", "evaluate.personalize", "query.phase"
"""Flower's names of the messages."""

_UNAVAILABLE = {3, 4, 5}
"""Flower's codes for a message, its reply or a node that is gone."""
_RAISED = 2
_OWN = re.compile(r"<class 'fedlightning\.errors\.\w+'>:<['\"](.*)['\"]>")
"""How Flower reports an error of ours."""
_PATIENCE = 0.5


class GridNodes:
    """The clients' nodes, as Flower's grid reaches them.

    A node that is lost is no failure of its client's yet. Under ``retry`` its order is sent again
    once it is back, under the same or another number, for as long as ``node_timeout`` says; the
    client then starts where it started before, so the result is that of a run without the fault.

    Args:
        grid: Flower's grid.
        nodes: Number of each client's node, by client.
        policy: What a client's failure means.
        rules: Returns what may travel.
        node_timeout: Seconds to wait for a lost node under ``retry``.
        answer_timeout: Seconds to wait for an answer of a node that is there.
        poll: Seconds between two looks for answers.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[int, int],
        policy: Policy,
        rules: Callable[[], Rules],
        node_timeout: float = 600.0,
        answer_timeout: float = 43_000.0,
        poll: float = 0.1,
    ) -> None:
        self._grid = grid
        self._nodes = dict(nodes)
        self._policy = policy
        self._rules = rules
        self._node_timeout = node_timeout
        self._answer_timeout = answer_timeout
        self._poll = poll

    def ask(self, orders: Sequence[Order]) -> list[Answer]:
        """Return the answers to orders for different clients, in the same order."""
        if not orders:
            return []
        rules = self._rules()
        contents = {order.client: encode_order(order, rules) for order in orders}
        kinds = {order.client: _kind(order) for order in orders}
        rounds = {order.client: order.round for order in orders}
        answers: dict[int, Answer] = {}
        lost: dict[int, tuple[float, str]] = {}
        waiting: dict[str, int] = {}
        until = time.monotonic() + self._answer_timeout

        def send(clients: Iterable[int]) -> None:
            several = list(clients)
            messages = [
                Message(contents[c], self._nodes[c], kinds[c], group_id=str(rounds[c]))
                for c in several
            ]
            waiting.update(zip(self._grid.push_messages(messages), several, strict=True))

        def fail(client: int, text: str) -> None:
            failure = ClientFailure(client, rounds[client], "timeout", text)
            answers[client] = Answer(client, failure=failure)

        send(contents)
        while len(answers) < len(orders):
            for reply in self._grid.pull_messages(list(waiting)) if waiting else ():
                client = waiting.pop(reply.metadata.reply_to_message_id)
                if not reply.has_error():
                    answers[client] = decode_answer(reply.content, rules)
                elif reply.error.code not in _UNAVAILABLE:
                    failure = ClientFailure(
                        client, rounds[client], "exception", _in_words(reply.error)
                    )
                    answers[client] = Answer(client, failure=failure)
                elif self._policy == "retry":
                    rank_zero_warn(
                        f"client {client}, round {rounds[client]}: its node is lost "
                        f"({_in_words(reply.error)}); waiting up to {self._node_timeout:.0f} s"
                    )
                    lost[client] = time.monotonic() + self._node_timeout, _in_words(reply.error)
                else:
                    fail(client, f"its node is lost ({_in_words(reply.error)})")
            back = self._back(lost) if lost else ()
            for client in back:
                del lost[client]
            if back:
                send(back)
            now = time.monotonic()
            for client in [c for c, (end, _) in lost.items() if now > end]:
                fail(client, f"its node is lost ({lost.pop(client)[1]}) and has not come back")
            if now > until:
                for client in waiting.values():
                    fail(client, f"no answer within {self._answer_timeout:.0f} s")
                waiting.clear()
            if len(answers) < len(orders):
                time.sleep(_PATIENCE if lost else self._poll)
        return [answers[order.client] for order in orders]

    def _back(self, lost: Iterable[int]) -> list[int]:
        """Return the lost clients whose nodes are there again, perhaps under another number."""
        present = set(self._grid.get_node_ids())
        strangers = present - set(self._nodes.values())
        if strangers:
            for node, passport in _who(self._grid, sorted(strangers), self._poll, 60.0).items():
                if passport.client in self._nodes:
                    self._nodes[passport.client] = node
        return [client for client in lost if self._nodes[client] in present]


def _kind(order: Order) -> str:
    if order.personalize is not None:
        return PERSONALIZE
    return PHASE if order.phase is not None and order.train is None else TRAIN


def meet(grid: Grid, num_clients: int, wait: float, poll: float = 0.1) -> dict[int, Passport]:
    """Wait until there are as many nodes as clients; ask them who they are.

    Args:
        grid: Flower's grid.
        num_clients: Number of clients.
        wait: Seconds to wait.
        poll: Seconds between two looks.

    Returns:
        What each node says, by its number.

    Raises:
        FederationError: Too few nodes come, or one does not answer.
    """
    until = time.monotonic() + wait
    while len(nodes := sorted(grid.get_node_ids())) < num_clients:
        if time.monotonic() > until:
            raise FederationError(
                f"{len(nodes)} of {num_clients} nodes are there after {wait:.0f} s; start the "
                "others, or raise `wait` in the app's run config."
            )
        time.sleep(max(poll, 0.01))
    return _who(grid, nodes, poll, max(until - time.monotonic(), 60.0))


def _who(grid: Grid, nodes: Sequence[int], poll: float, wait: float) -> dict[int, Passport]:
    messages = [Message(RecordDict(), node, WHO, group_id="who") for node in nodes]
    waiting = dict(zip(grid.push_messages(messages), nodes, strict=True))
    until, found = time.monotonic() + wait, dict[int, Passport]()
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            node = waiting.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                raise FederationError(f"node {node}: {_in_words(reply.error)}")
            found[node] = decode_passport(reply.content)
        if waiting and time.monotonic() > until:
            raise FederationError(
                f"node {next(iter(waiting.values()))} does not say who it is within {wait:.0f} s."
            )
        if waiting:
            time.sleep(poll)
    return found


def _in_words(error: Any) -> str:
    """Return the last line of an error that Flower reports."""
    lines = [line.strip() for line in str(error.reason or "").splitlines() if line.strip()]
    text = lines[-1] if lines else "no reason given"
    if (own := _OWN.fullmatch(text)) is not None:
        text = own[1]
    return text if error.code == _RAISED else f"{text.rstrip('.')}, code {error.code}"
