"""Sums of which the server sees no summand: the simulation's bits, whoever is lost and when."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

pytest.importorskip("flwr", reason="needs the extra flower")

from fedlightning.cli.terminal import quiet
from fedlightning.deployment.identities import read_identity, write_keys
from fedlightning.deployment.masks.phases import KEYS, MASK, REVEAL, SHARES, clients_as
from fedlightning.deployment.messages import Order, Phase
from fedlightning.engine.clients import ResidentClients
from fedlightning.errors import ConfigError, FederationError
from fedlightning.flower.wire import Rules, decode_answer, decode_order
from tests.flower.loopback import Killed, LoopbackGrid, Run

CONFIG = """\
seed_everything: 3
model: {class_path: MLP, init_args: {in_features: 64, hidden: [8], num_classes: 10, lr: 0.1}}
data:
  class_path: Digits
  init_args: {num_clients: 4, batch_size: 100, partition: IID}
federation:
  algorithm:
    class_path: Composite
    init_args: {algorithms: [FedPer, SCAFFOLD, {class_path: FedAdam, init_args: {lr: 0.03}}]}
  aggregator: {class_path: SecureSum, init_args: {limit: 4.0, bits: 32}}
  cohort_size: 1.0
  on_client_failure: retry
trainer:
  max_epochs: 2
"""
RULES = Rules(down=frozenset({"scaffold"}), up=frozenset({"scaffold"}))


@pytest.fixture(autouse=True)
def as_on_the_command_line(monkeypatch):
    monkeypatch.setattr("fedlightning.trainer.RequirementCache", lambda name: False)
    with quiet():
        yield


@pytest.fixture
def make(tmp_path):
    def made(*options: str, text: str = CONFIG) -> Run:
        (tmp_path / "run.yaml").write_text(text)
        return Run(str(tmp_path / "run.yaml"), tmp_path, options)

    return made


class NamedGrid(LoopbackGrid):
    """Loses the answers to one phase of some clients, in the first round.

    Attributes:
        lose: The phase, and the clients.
    """

    def __init__(self, nodes, lose: tuple[str, set[int]] = ("", set())) -> None:
        super().__init__(nodes)
        self.lose = lose
        self.phases: list[tuple[str, int]] = []

    def _deliver(self, message) -> str:
        name = "" if message.metadata.message_type == "query.who" else phase_of(message)
        client = message.metadata.dst_node_id - 100
        first = (name, client) not in self.phases
        self.phases.append((name, client))
        if name == self.lose[0] and client in self.lose[1] and first:
            self.lose_messages.add(len(self.messages) // 2)
        return super()._deliver(message)


def phase_of(message) -> str:
    phase = decode_order(message.content).phase
    return phase.name if phase is not None else "measure"


@pytest.mark.parametrize("bits", [32, 64])
def test_it_has_the_bits_of_the_simulation_and_costs_four_messages_a_round(make, bits):
    run = make(f"--federation.aggregator.bits={bits}")
    grid = NamedGrid(run.nodes())
    assert run.deploy(grid) == run.simulate()
    of_one = [name for name, client in grid.phases if client == 2]
    assert of_one == ["", *[KEYS, SHARES, MASK, REVEAL, "measure"] * 2]


def test_an_update_on_the_wire_is_noise_and_nothing_of_the_model_is_beside_it(make):
    run = make()
    grid = NamedGrid(run.nodes())
    run.deploy(grid)
    replies = [
        decode_answer(reply.content, RULES)
        for message, reply in zip(grid.messages[::2], grid.messages[1::2], strict=True)
        if message.metadata.message_type == "train"
    ]
    shares = [
        share
        for message, reply in zip(grid.messages[8::2], grid.messages[9::2], strict=True)
        if phase_of(message) == SHARES
        for share in decode_answer(reply.content, RULES).reply.values()
    ]
    assert [len(share) for share in shares] == [160] * (2 * 4 * 3)  # rounds, clients, others
    updates = [answer.trained.update for answer in replies if answer.trained is not None]
    assert len(updates) == 8
    for update in updates:
        assert not update.state
        assert all(value.to_sparse_coo()._nnz() == 0 for value in update.extras.values())
        numbers = update.payload.numpy().astype(float)
        assert len(numbers) == 2 * (64 * 8 + 8)  # the body, and SCAFFOLD's change of it
        assert stats.kstest(numbers / 2**32, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("phase", [KEYS, SHARES, MASK, REVEAL])
def test_an_answer_that_was_lost_is_given_again(make, phase):
    run = make()
    grid = NamedGrid(run.nodes(), (phase, {1, 2}))
    with pytest.warns(UserWarning, match="its node is lost"):
        deployed = run.deploy(grid)
    assert grid.phases.count((phase, 1)) == 3  # two rounds, and once more
    assert deployed == run.simulate()


@pytest.mark.parametrize("phase", [KEYS, SHARES, MASK])
def test_a_node_lost_before_it_has_sent_numbers_is_not_in_the_sum(make, phase, monkeypatch):
    run = make("--federation.on_client_failure=skip")
    with pytest.warns(UserWarning, match="client 2, round 0: its node is lost"):
        deployed = run.deploy(NamedGrid(run.nodes(), (phase, {2})))
    whole, train = run.simulate(), ResidentClients.train

    def fails_once(self, job, kept):
        if (job.client, job.version) == (2, 0):
            raise ValueError("lost")
        return train(self, job, kept)

    monkeypatch.setattr(ResidentClients, "train", fails_once)
    with pytest.warns(UserWarning, match="client 2, round 0: ValueError: lost"):
        simulated = run.simulate()
    assert (deployed.model, deployed.server) == (simulated.model, simulated.server)
    assert deployed.model != whole.model


def test_a_node_lost_after_that_is_in_the_sum(make):
    run = make("--federation.on_client_failure=skip")
    deployed = run.deploy(NamedGrid(run.nodes(), (REVEAL, {2})))
    assert deployed == run.simulate()


def test_with_too_few_left_nothing_can_be_read(make):
    run = make("--federation.on_client_failure=skip")
    grid = NamedGrid(run.nodes(), (MASK, {1, 2}))
    with pytest.raises(FederationError, match="2 clients have sent an update, and 3 are needed"):
        run.deploy(grid)
    assert REVEAL not in [name for name, _ in grid.phases]


def test_a_frozen_parameter_that_clients_change_is_summed_from_then_on(make):
    model = "model: {class_path: tests.flower.parts.MovesFrozen, init_args: {lr: 0.1}}"
    lines = [model if line.startswith("model:") else line for line in CONFIG.splitlines()]
    run = make(text="\n".join(lines).replace("[FedPer, SCAFFOLD", "[SCAFFOLD"))
    grid = NamedGrid(run.nodes())
    assert run.deploy(grid) == run.simulate()
    of_one = [name for name, client in grid.phases if client == 2]
    assert of_one.count(MASK) == 3  # the first round was begun anew
    assert of_one.count(REVEAL) == 2  # and nothing of its first try was read


def test_a_server_that_is_killed_goes_on_from_its_last_round(make):
    run = make()
    nodes = run.nodes()
    grid = LoopbackGrid(nodes)
    grid.die_at = 4 + 5 * 4 + 14  # in the second round, when some have revealed
    with pytest.raises(Killed):
        run.deploy(grid)
    assert run.deploy(LoopbackGrid(nodes)) == run.simulate()


# -- a server that cheats ------------------------------------------------------------------------


@pytest.fixture
def after_a_round(make):
    """A run whose nodes have masked and revealed once, and its messages."""
    run = make("--trainer.max_epochs=1")
    nodes = run.nodes()
    grid = LoopbackGrid(nodes)
    run.deploy(grid)
    orders = [decode_order(m.content) for m in grid.messages[8::2]]
    return nodes[102], {o.phase.name: o for o in orders if o.client == 2 and o.phase is not None}


def test_an_order_without_masks_is_refused(after_a_round):
    node, orders = after_a_round
    answer = node.carry_out(replace(orders[MASK], phase=None))
    assert answer.trained is None
    assert "asks for an update without masks" in answer.error[1]


def test_the_same_order_gives_the_same_numbers_and_another_none(after_a_round):
    node, orders = after_a_round
    one, two = (node.carry_out(orders[MASK]).trained.update.payload for _ in range(2))
    assert one.equal(two)
    moved = {key: value + 0.25 for key, value in orders[MASK].state.items()}
    answer = node.carry_out(replace(orders[MASK], state=moved))
    assert "numbers are masked once a round" in answer.error[1]


def test_masks_do_not_cancel_among_nodes_that_were_sent_different_things(make):
    """A server that has all but one train with a rate of zero would learn that one's update."""
    run = make("--trainer.max_epochs=1", "--federation.algorithm=FedBABU")
    nodes = run.nodes()
    honest = nodes[101].carry_out

    def misled(order):
        if order.train is not None:
            groups = [[{**group, "lr": 0.0} for group in g] for g in order.train.hyperparameters]
            order = replace(order, train=replace(order.train, hyperparameters=groups))
        return honest(order)

    nodes[101].carry_out = misled
    deployed = run.deploy(LoopbackGrid(nodes))
    header, row = deployed.metrics.splitlines()
    loss = dict(zip(header.split(","), row.split(","), strict=True))["global/loss"]
    assert float(loss) > 3 * 2.3  # the global model is noise


def test_shares_are_revealed_for_one_sum_alone(after_a_round):
    node, orders = after_a_round
    assert node.carry_out(orders[REVEAL]).reply == node.carry_out(orders[REVEAL]).reply
    content = {"answered": clients_as([0, 2, 3]), "gone": clients_as([1])}
    phase = replace(orders[REVEAL].phase, content=content)
    answer = node.carry_out(Order(2, 0, {}, phase=phase))
    assert not answer.reply
    assert "so their difference would show" in answer.error[1]


def test_a_second_round_of_masks_over_the_same_update_must_be_the_same_sum(make):
    """A server that repeats a round without one client would learn that client's update."""
    run = make("--federation.on_client_failure=skip")
    nodes = run.nodes()
    grid = LoopbackGrid(nodes)
    grid.die_at = 4 + 4 * 4 - 1  # all but the last have revealed
    with pytest.raises(Killed):
        run.deploy(grid)
    with pytest.raises(FederationError, match="in a sum over clients 0, 1, 2, 3 already"):
        run.deploy(NamedGrid(nodes, (MASK, {1})))


def test_an_old_session_is_not_begun_again(after_a_round):
    node, orders = after_a_round
    old = orders[KEYS]
    node.carry_out(Order(2, 1, {}, phase=Phase(KEYS, "another")))
    answer = node.carry_out(old)
    assert "used before" in answer.error[1]
    answer = node.carry_out(Order(2, 1, {}, phase=Phase(KEYS, f"{old.phase.session}\n")))
    assert "is not the name of a session" in answer.error[1]
    answer = node.carry_out(orders[REVEAL])
    assert "knows nothing of this round's keys" in answer.error[1]


@pytest.mark.parametrize("repeated", [False, True])
def test_a_session_whose_beginning_was_cut_short_is_not_begun_again(
    after_a_round, monkeypatch, repeated
):
    """The node is killed when the session is on the disk, and before it has answered."""
    node, orders = after_a_round

    def begin(name: str):
        return node.carry_out(Order(2, 1, {}, phase=Phase(KEYS, name)))

    replace_file = os.replace

    def killed(source, target):
        replace_file(source, target)
        if Path(target).name == "session.json":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            begin("short")
    if repeated:  # the server has had no answer
        assert begin("short").reply == begin("short").reply != {}
    assert begin("another").reply
    for name in ("short", orders[KEYS].phase.session):
        assert "used before" in begin(name).error[1]


def test_shares_for_other_keys_are_not_made(after_a_round):
    node, orders = after_a_round
    phase = orders[SHARES].phase
    fewer = {name: value for name, value in phase.content.items() if name != "1"}
    answer = node.carry_out(Order(2, 0, {}, phase=replace(phase, content=fewer)))
    assert "shares are made once a round" in answer.error[1]


def test_secrets_are_the_owners_alone(after_a_round):
    node, _ = after_a_round
    folder = node._store.folder / "masks"
    assert folder.stat().st_mode & 0o77 == 0


# -- settings ------------------------------------------------------------------------------------


def test_a_node_without_keys_is_refused_before_the_first_round(make):
    run = make()
    nodes = run.nodes()
    nodes[102]._identity = None
    with pytest.raises(ConfigError, match="nodes mask what they send, and must know each other"):
        run.deploy(LoopbackGrid(nodes))


def test_what_needs_single_updates_is_refused(make):
    options = ["--federation.algorithm=FedBABU", "--federation.optimizer_state=fresh"]
    run = make("--federation.schedule=Cyclic", *options)
    with pytest.raises(ConfigError, match="server gets the sum of updates, and they may be stale"):
        run.deploy(LoopbackGrid(run.nodes()))


def test_a_sum_of_one_is_refused(make):
    run = make("--federation.cohort_size=1")
    with pytest.raises(FederationError, match="1 clients take part, and 2 are needed"):
        run.deploy(LoopbackGrid(run.nodes()))


def test_keys_are_read_and_compared(tmp_path):
    from cryptography.exceptions import InvalidSignature

    write_keys(tmp_path, ["aarau", "basel"])
    names = ["aarau", "basel"]
    one = read_identity(tmp_path / "node-aarau", tmp_path, names, 0)
    signature = one.key.sign(b"text")
    one.known[0].verify(signature, b"text")
    with pytest.raises(InvalidSignature):
        one.known[1].verify(signature, b"text")
    assert (tmp_path / "node-aarau").stat().st_mode & 0o77 == 0
    with pytest.raises(ConfigError, match=r"is not the private key of .*node-basel\.pub"):
        read_identity(tmp_path / "node-aarau", tmp_path, names, 1)
    (tmp_path / "node-basel.pub").write_bytes((tmp_path / "node-aarau.pub").read_bytes())
    with pytest.raises(ConfigError, match=r"node-basel\.pub is the key of node-aarau\.pub, too"):
        read_identity(tmp_path / "node-aarau", tmp_path, names, 0)
    with pytest.raises(ConfigError, match=r"node-chur\.pub"):
        read_identity(tmp_path / "node-aarau", tmp_path, ["aarau", "chur"], 0)


def test_the_keys_with_which_nodes_log_in_serve(tmp_path):
    import subprocess

    for name in ("0", "1"):
        words = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f"]
        subprocess.run([*words, str(tmp_path / f"node-{name}")], check=True)
    one, two = (read_identity(tmp_path / f"node-{c}", tmp_path, ["0", "1"], c) for c in (0, 1))
    two.known[0].verify(one.key.sign(b"text"), b"text")
