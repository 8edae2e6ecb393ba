"""Lost nodes, a killed server, updates made twice: the result is the fault-free one's bits."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs the extra flower")

from flwr.app import Error, Message

from fedlightning.cli.terminal import quiet
from fedlightning.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EnvironmentFailure,
    FederationError,
)
from fedlightning.flower.wire import Rules, decode_order, encode_answer
from fedlightning.storage.client_files import read_state
from tests import toys
from tests.flower.loopback import Killed, LoopbackGrid, Run

CONFIG = """\
seed_everything: 3
model: {class_path: MLP, init_args: {in_features: 64, hidden: [16], num_classes: 10, lr: 0.1}}
data:
  class_path: Digits
  init_args: {num_clients: 4, batch_size: 40, partition: IID}
federation:
  algorithm:
    class_path: Composite
    init_args: {algorithms: [FedPer, SCAFFOLD, {class_path: FedAdam, init_args: {lr: 0.03}}]}
  cohort_size: 3
  on_client_failure: retry
trainer:
  max_epochs: 3
  callbacks:
    - {class_path: PersonalizationCallback, init_args: {epochs: 1, nearest_mean: false}}
"""


@pytest.fixture(autouse=True)
def as_on_the_command_line(monkeypatch):
    for module in ("fedlightning.callbacks.run_record", "fedlightning.personalization.results"):
        monkeypatch.setattr(f"{module}.save_figure", lambda *args: None)
    monkeypatch.setattr("fedlightning.trainer.RequirementCache", lambda name: False)
    with quiet():
        yield


@pytest.fixture
def make(tmp_path):
    def made(text: str = CONFIG, *options: str) -> Run:
        (tmp_path / "run.yaml").write_text(text)
        return Run(str(tmp_path / "run.yaml"), tmp_path, options)

    return made


def test_a_client_gets_one_message_a_round(make):
    run = make(CONFIG, "--federation.cohort_size=1.0")
    grid = LoopbackGrid(run.nodes())
    run.deploy(grid)
    kinds = [m.metadata.message_type for m in grid.messages[::2] if m.metadata.dst_node_id == 102]
    # train, measure and train, measure and train, measure
    assert kinds == ["query.who", *["train"] * 4, "evaluate.personalize"]


@pytest.mark.parametrize("at", [0, 5])
def test_an_update_that_was_made_and_lost_is_made_again(make, at):
    run = make()
    grid = LoopbackGrid(run.nodes())
    grid.lose_messages = {4 + at}
    with pytest.warns(UserWarning, match="its node is lost"):
        deployed = run.deploy(grid)
    assert deployed == run.simulate()


def test_private_steps_of_an_update_that_is_made_again_count_twice(make, capsys):
    """Under secure noise that is another release, whatever state it starts from."""
    pytest.importorskip("opacus", reason="needs the extra opacus")
    private = "{class_path: PrivateSGD, init_args: {noise_multiplier: 1.0, secure: true}}"
    text = CONFIG.replace("SCAFFOLD, {class_path: FedAdam, init_args: {lr: 0.03}}", private)
    run = make(text, "--federation.cohort_size=1.0")
    grid = LoopbackGrid(run.nodes())
    grid.lose_messages = {4}
    with pytest.warns(UserWarning, match="its node is lost"):
        run.deploy(grid)
    updates = []
    for client, store in run.stores.items():
        files = (store.folder / "kept").glob("*.safetensors")
        examples, steps = max(read_state(file, client)["example_dp"].tolist() for file in files)
        updates.append(steps / math.ceil(examples / 40))
    assert sorted(updates) == [3, 3, 3, 4]  # three rounds, and one of them again
    printed = " ".join(capsys.readouterr().out.split())
    assert "each client's account at delta = 1e-05 is kept at its node" in printed
    assert "epsilon <=" not in printed


def test_a_node_that_comes_back_under_another_number_goes_on(make):
    run = make()
    nodes = run.nodes()
    grid = LoopbackGrid(nodes)
    grid.lose_messages = {5}
    grid.renumber = True
    with pytest.warns(UserWarning, match="its node is lost"):
        deployed = run.deploy(grid)
    assert max(nodes) >= 1000
    assert deployed == run.simulate()


def test_a_node_that_the_server_refuses_for_a_while_is_waited_for(make):
    run = make()
    grid = LoopbackGrid(run.nodes())
    grid.lose_messages, grid.banned = {5}, 3
    with pytest.warns(UserWarning, match=r"its node is lost \(Node Unavailable, code 5\); waiting"):
        deployed = run.deploy(grid)
    assert deployed == run.simulate()


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (Error(2, "Traceback\nOSError: the store is not mounted"), "OSError: the store is not mo"),
        (Error(5, "Node Unavailable"), "Node Unavailable, code 5"),
        (None, ""),
    ],
)
def test_a_node_that_is_back_and_cannot_say_who_it_is_yet_is_waited_for(
    make, monkeypatch, trouble, why
):
    for seconds in ("_AGAIN", "_SILENCE", "_PATIENCE"):
        monkeypatch.setattr(f"fedlightning.flower.grid_nodes.{seconds}", 0.01)
    run = make()
    grid = LoopbackGrid(run.nodes())
    grid.lose_messages, grid.troubles = {5}, [trouble, trouble]
    with pytest.warns(UserWarning, match="its node is lost|lost client's") as warned:
        deployed = run.deploy(grid)
    assert not grid.troubles
    assert any(f"lost client's: {why}" in str(w.message) for w in warned) == bool(why)
    assert deployed == run.simulate()


@pytest.mark.parametrize("renumber", [False, True])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"settings": "f" * 64}, r"nodes have other settings \(client \d: ffffffffffff"),
        ({"model": "0"}, r"untrained model of client \d is another"),
        ({"versions": {"torch": "1.0"}}, r"client \d: torch 1.0, the server has"),
        ({"schema": "(float32 3), 10 classes"}, r"client \d has other examples .*\(float32 3\)"),
        ({"sizes": {"train": 1}}, r"client \d has other examples .*: 1 train of \(float32"),
    ],
)
def test_a_node_that_comes_back_as_another_is_not_taken_back(make, renumber, change, text):
    run = make(CONFIG, "--federation.max_retries=0")
    nodes = run.nodes()
    grid = LoopbackGrid(nodes)
    grid.lose_messages, grid.renumber = {5}, renumber
    for node in nodes.values():
        passport = node.passport()
        changed = replace(passport, **change)
        node.passport = lambda now=passport, then=changed: then if len(grid.messages) > 8 else now
    with (
        pytest.raises(FederationError, match=r"its node is lost .* and has not come back"),
        pytest.warns(UserWarning, match="its node is lost|lost client's") as warned,
    ):
        run.deploy(grid, lost=0.2)
    assert any(re.search(f"lost client's: .*{text}", str(w.message)) for w in warned)


def test_a_stranger_does_not_take_the_place_of_a_node_that_is_there(make):
    run = make()
    nodes = run.nodes()
    grid = LoopbackGrid(nodes)
    grid.lose_messages = {5}
    strangers = {500 + node: nodes[node] for node in nodes}
    grid.before_message = lambda number: number == 5 and nodes.update(strangers)
    with pytest.warns(UserWarning, match="its node is lost"):
        deployed = run.deploy(grid)
    asked = [m.metadata.message_type for m in grid.messages[::2] if m.metadata.dst_node_id >= 500]
    assert set(asked) == {"query.who"}
    assert deployed == run.simulate()


def test_a_node_that_the_server_does_not_know_any_more_is_waited_for(make):
    run = make(CONFIG, "--federation.cohort_size=1.0")
    grid = LoopbackGrid(run.nodes())
    gone = [101, 102]

    def push(messages):
        numbers = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            if kind == "train" and node in gone:
                gone.remove(node)
                numbers.append("")  # as Flower does
            else:
                numbers.append(grid._deliver(message))
        return numbers

    grid.push_messages = push
    with pytest.warns(UserWarning, match=r"its node is lost \(the server has no such node\)"):
        deployed = run.deploy(grid)
    assert not gone
    assert deployed == run.simulate()


def test_a_node_that_does_not_come_back_is_not_waited_for_longer_than_said(make):
    run = make(CONFIG, "--federation.max_retries=0")
    grid = LoopbackGrid(run.nodes())
    grid.lose_messages, grid.banned = {5}, 10**6
    with (
        pytest.raises(FederationError, match=r"its node is lost .* and has not come back"),
        pytest.warns(UserWarning, match="waiting up to 0 s"),
    ):
        run.deploy(grid, lost=0.2)


def test_an_update_made_twice_has_the_same_bytes_and_moves_what_is_kept_once(make):
    run = make(CONFIG, "--federation.cohort_size=1.0")
    nodes = run.nodes()
    grid = LoopbackGrid(nodes)
    run.deploy(grid)
    sent = [decode_order(m.content) for m in grid.messages[8::2] if m.metadata.dst_node_id == 102]
    order = next(o for o in sent if o.train is not None and o.train.round == 2)
    assert order.train.after == 1
    folder = run.stores[2].folder / "kept"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rules = Rules.of(nodes[102].algorithm, nodes[102].kept_keys)
    answers = [encode_answer(nodes[102].carry_out(order), rules) for _ in range(2)]
    first, second = (
        (a.config_records["text"], a.array_records["state"].to_numpy_ndarrays()) for a in answers
    )
    assert first[0] == second[0]
    assert first[1]
    assert all(map(np.array_equal, first[1], second[1]))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_lost_node_is_skipped_where_that_is_the_policy(make):
    run = make(CONFIG, "--federation.on_client_failure=skip")
    grid = LoopbackGrid(run.nodes())
    grid.lose_messages = {4}
    with pytest.warns(UserWarning, match="its node is lost"):
        deployed = run.deploy(grid)
    header, first = deployed.metrics.splitlines()[:2]
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(row["clients/failed_timeout"]) == 1
    assert float(row["clients/succeeded"]) == 2


def test_a_lost_node_ends_the_run_where_that_is_the_policy(make):
    run = make(CONFIG, "--federation.on_client_failure=fail")
    grid = LoopbackGrid(run.nodes())
    grid.lose_messages = {5}
    with pytest.raises(FederationError, match=r"client \d, round 0: its node is lost"):
        run.deploy(grid)


@pytest.mark.parametrize("at", [5, 9, 15])
def test_a_server_that_is_killed_goes_on_from_its_last_round(make, at):
    run = make()
    nodes = run.nodes()
    grid = LoopbackGrid(nodes)
    grid.die_at = at
    with pytest.raises(Killed):
        run.deploy(grid)
    assert run.deploy(LoopbackGrid(nodes)) == run.simulate()


def test_a_store_that_was_cleared_is_named(make):
    run = make(CONFIG, "--federation.cohort_size=1.0")
    nodes = run.nodes()
    grid = LoopbackGrid(nodes)
    grid.before_message = lambda number: number == 10 and run.stores[2].keep_only(0, set())
    with pytest.raises(CheckpointError, match=r"client 2, at its node: .* is missing"):
        run.deploy(grid)


def test_the_store_has_no_more_than_three_versions(make):
    run = make(CONFIG, "--federation.cohort_size=1.0", "--trainer.max_epochs=5")
    run.deploy(LoopbackGrid(run.nodes()))
    counts = [len(list((store.folder / "kept").iterdir())) for store in run.stores.values()]
    assert counts == [3, 3, 3, 3]


# -- refused before the first round --------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"settings": "f" * 64}, ConfigError, "nodes have other settings.*client 2: ffffffffffff"),
        ({"model": "0"}, ConfigError, "untrained model of client 2 is another"),
        ({"versions": {"torch": "1.0"}}, EnvironmentFailure, "client 2: torch 1.0, the server has"),
        ({"schema": "(float32 3), 10 classes"}, DataError, r"client 2: \(float32 3\), 10 classes"),
        ({"client": 1}, ConfigError, "2 nodes say they are client 1"),
        ({"client": 9}, ConfigError, "says it is client 9, and data.num_clients=4"),
    ],
)
def test_a_node_of_another_run_is_refused_before_the_first_round(make, change, error, text):
    run = make()
    nodes = run.nodes()
    passport = nodes[102].passport()
    nodes[102].passport = lambda: replace(passport, **change)
    grid = LoopbackGrid(nodes)
    with pytest.raises(error, match=text):
        run.deploy(grid)
    assert {m.metadata.message_type for m in grid.messages} == {"query.who"}


def test_examples_of_another_form_at_a_node_are_refused_before_the_first_round(make):
    run = make()
    nodes = run.nodes()
    other = toys.data()
    nodes[102]._parts = replace(nodes[102]._parts, data=other)
    grid = LoopbackGrid(nodes)
    with pytest.raises(DataError, match=r"client 2: \(float32 4, int64\), 3 classes"):
        run.deploy(grid)
    assert {m.metadata.message_type for m in grid.messages} == {"query.who"}


def test_a_node_that_cannot_say_who_it_is_says_why(make):
    run = make()
    nodes = run.nodes()
    grid = LoopbackGrid(nodes)
    told = "<class 'fedlightning.errors.DataError'>:<'no such file: it's gone'>"

    def deliver(messages):
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"{message.metadata.dst_node_id}"
            error = Error(2, f"Traceback\n{told}")
            grid._replies[message.metadata.message_id] = Message(error, reply_to=message)
        return [message.metadata.message_id for message in messages]

    grid.push_messages = deliver
    with pytest.raises(FederationError, match=r"^node 10\d: no such file: it's gone$"):
        run.deploy(grid)


def test_too_few_nodes_are_counted(make):
    run = make()
    nodes = run.nodes()
    del nodes[103]
    with pytest.raises(FederationError, match="3 of 4 nodes are there"):
        run.deploy(LoopbackGrid(nodes))


def test_trouble_of_a_nodes_own_ends_the_run_and_is_named(make):
    run = make(CONFIG, "--federation.on_client_failure=skip", "--data.eval_clients=1")
    nodes = run.nodes()

    def broken(order: Any) -> Any:
        raise FederationError("the disk is full")

    nodes[102].carry_out = broken
    with pytest.raises(FederationError, match="client 2, at its node: the disk is full"):
        run.deploy(LoopbackGrid(nodes))


# -- things of a user's own ----------------------------------------------------------------------


def test_a_frozen_parameter_that_clients_change_is_sent_from_then_on(make):
    run = make(CONFIG.replace("class_path: MLP, init_args: {in_features: 64, hidden: [16], "
                              "num_classes: 10, lr: 0.1}",
                              "class_path: tests.flower.parts.MovesFrozen, init_args: {lr: 0.1}")
               .replace("[FedPer, SCAFFOLD, {class_path: FedAdam, init_args: {lr: 0.03}}]",
                        "[SCAFFOLD, {class_path: FedAdam, init_args: {lr: 0.03}}]"))  # fmt: skip
    assert run.deploy(LoopbackGrid(run.nodes())) == run.simulate()


def test_a_callback_that_looks_at_updates_does_so_at_the_node(make):
    text = CONFIG + "    - {class_path: tests.flower.parts.Doubles}\n"
    run = make(text)
    deployed = run.deploy(LoopbackGrid(run.nodes()))
    assert deployed == run.simulate()
    assert deployed.model != make().simulate().model
