"""Orders over Flower's grid: pushed to all nodes at once, answers pulled as they come."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.deployment.messages import Answer, Order, Passport
from fedlightning.deployment.registration import check_again
from fedlightning.errors import FederationError, FedLightningError
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
_AGAIN = 10.0
"""Seconds until a node that is nobody's, or not back yet, is asked again who it is."""
_SILENCE = 60.0
"""The same for one that does not answer."""


class GridNodes:
    """The clients' nodes, as Flower's grid reaches them.

    A node that is lost is no failure of its client's yet. Under ``retry`` its order is sent again
    once it is back, under the same or another number, for as long as ``node_timeout`` says, if it
    is as it was before the first round: versions, settings, model, examples. The client then starts
    where it started before, so the result is that of a run without the fault.

    Args:
        grid: Flower's grid.
        passports: What each client's node said before the first round, by the node's number.
        policy: What a client's failure means.
        rules: Returns what may travel.
        node_timeout: Seconds to wait for a lost node under ``retry``.
        answer_timeout: Seconds to wait for an answer of a node that is there.
        poll: Seconds between two looks for answers.
    """

    def __init__(
        self,
        grid: Grid,
        passports: Mapping[int, Passport],
        policy: Policy,
        rules: Callable[[], Rules],
        node_timeout: float = 600.0,
        answer_timeout: float = 43_000.0,
        poll: float = 0.1,
    ) -> None:
        self._grid = grid
        self._passports = {passport.client: passport for passport in passports.values()}
        self._nodes = {passport.client: node for node, passport in passports.items()}
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
            for number, client in zip(self._grid.push_messages(messages), several, strict=True):
                if number:
                    waiting[number] = client
                else:
                    lose(client, "the server has no such node")

        def fail(client: int, text: str) -> None:
            failure = ClientFailure(client, rounds[client], "timeout", text)
            answers[client] = Answer(client, failure=failure)

        def lose(client: int, why: str) -> None:
            if self._policy != "retry":
                fail(client, f"its node is lost ({why})")
                return
            rank_zero_warn(
                f"client {client}, round {rounds[client]}: its node is lost ({why}); waiting up to "
                f"{self._node_timeout:.0f} s"
            )
            lost[client] = time.monotonic() + self._node_timeout, why

        returning = _Returning(self._grid, self._passports)
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
                else:
                    lose(client, _in_words(reply.error))
            back = self._back(returning, lost) if lost else ()
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

    def _back(self, returning: _Returning, lost: Collection[int]) -> list[int]:
        """Return the lost clients whose nodes are there again, perhaps under another number."""
        taken = [node for client, node in self._nodes.items() if client not in lost]
        found = returning.look(lost, taken)
        self._nodes.update(found)
        return list(found)


class _Returning:
    """Recognises the nodes of lost clients once they are there again.

    Nodes that are not known to be another client's are asked who they are. An error or silence
    means that a node is not back yet, and so does a passport that is not the lost client's.

    Args:
        grid: Flower's grid.
        passports: What each client's node said before the first round, by client.
    """

    def __init__(self, grid: Grid, passports: Mapping[int, Passport]) -> None:
        self._grid = grid
        self._passports = passports
        self._asked: dict[str, int] = {}
        self._next: dict[int, float] = {}  # when to ask a node again
        self._said: set[tuple[int, str]] = set()

    def look(self, lost: Collection[int], taken: Collection[int]) -> dict[int, int]:
        """Return the numbers of the nodes that have come back, by client.

        Args:
            lost: The clients without a node.
            taken: The numbers of the other clients' nodes.
        """
        now, present = time.monotonic(), set(self._grid.get_node_ids())
        due = sorted(node for node in present - set(taken) if self._next.get(node, now) <= now)
        if due:
            numbers = self._grid.push_messages(_questions(due))
            self._asked.update({n: node for n, node in zip(numbers, due, strict=True) if n})
            self._next.update(dict.fromkeys(due, now + _SILENCE))
        found: dict[int, int] = {}
        for reply in self._grid.pull_messages(list(self._asked)) if self._asked else ():
            node = self._asked.pop(reply.metadata.reply_to_message_id)
            self._next[node] = now + _AGAIN
            client = self._recognised(node, reply)
            if client is not None and client in lost and client not in found and node in present:
                found[client] = node
                del self._next[node]
        return found

    def _recognised(self, node: int, reply: Message) -> int | None:
        """Return the client whose node it is; ``None`` if it is not, or not as it was."""
        try:
            if reply.has_error():
                raise FederationError(_in_words(reply.error))
            passport = decode_passport(reply.content)
            if (before := self._passports.get(passport.client)) is not None:
                check_again(passport, before)
            return passport.client
        except FedLightningError as error:
            if (node, str(error)) not in self._said:
                self._said.add((node, str(error)))
                rank_zero_warn(f"node {node} is not taken for a lost client's: {error}")
            return None


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
    waiting = dict(zip(grid.push_messages(_questions(nodes)), nodes, strict=True))
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


def _questions(nodes: Sequence[int]) -> list[Message]:
    return [Message(RecordDict(), node, WHO, group_id="who") for node in nodes]


def _in_words(error: Any) -> str:
    """Return the last line of an error that Flower reports."""
    lines = [line.strip() for line in str(error.reason or "").splitlines() if line.strip()]
    text = lines[-1] if lines else "no reason given"
    if (own := _OWN.fullmatch(text)) is not None:
        text = own[1]
    return text if error.code == _RAISED else f"{text.rstrip('.')}, code {error.code}"
