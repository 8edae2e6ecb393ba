"""What travels: tensors as they were sent, and nothing that an algorithm keeps."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra flower")

from flwr.app import RecordDict

from fedlightning import SCAFFOLD, FedPer
from fedlightning.core.messages import ClientUpdate
from fedlightning.core.metrics import LogFlags
from fedlightning.deployment.messages import Answer, Order, Passport, Receipt, TrainOrder
from fedlightning.engine.workers.cohort_exchange import Trained
from fedlightning.errors import FederationError
from fedlightning.federation.failures import ClientFailure
from fedlightning.federation.jobs import Job
from fedlightning.flower.wire import (
    Rules,
    decode_answer,
    decode_order,
    decode_passport,
    encode_answer,
    encode_order,
    encode_passport,
)
from fedlightning.personalization.results import PersonalResult

TENSORS = {
    "bf16": torch.tensor([1.5, float("nan"), -0.0], dtype=torch.bfloat16),
    "f8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    "f16": torch.tensor([65504.0], dtype=torch.float16),
    "f64": torch.tensor(0.1, dtype=torch.float64),
    "complex": torch.tensor([1 + 2j]),
    "integers": torch.tensor([[2**62, -1]]),
    "flag": torch.tensor(True),
    "empty": torch.zeros(0, 3),
    "step": torch.arange(6.0)[::2],
    "image": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
}


def over_the_network(records: RecordDict) -> RecordDict:
    """Return records as they come out of Flower's bytes."""
    copied = RecordDict()
    for name, record in records.items():
        children = {child.object_id: type(child).inflate(
            child.deflate(), {c.object_id: c for c in (child.children or {}).values()})
            for child in (record.children or {}).values()}  # fmt: skip
        copied[name] = type(record).inflate(record.deflate(), children or None)
    return copied


def train_order(**changes) -> TrainOrder:
    values = {
        "job": Job(3, 7, 1, 2.5, 9, 0.1), "round": 7, "updates": 20, "extras": {},
        "hyperparameters": [[{"lr": 0.1, "betas": (0.9, 0.999), "fused": None}]],
        "planned_steps": 40, "run": 2**61, "after": 5, "durable": 4,
    }  # fmt: skip
    return TrainOrder(**{**values, **changes})


def update(**changes) -> ClientUpdate:
    values = {
        "client": 3, "state": {}, "num_examples": 12, "steps": 4,
        "metrics": {"train/loss": float("nan"), "x": 0.1 + 0.2}, "bytes_up": 8, "bytes_down": 9,
        "version": 7, "unsent": ("body.0.bias",),
    }  # fmt: skip
    return ClientUpdate(**{**values, **changes})


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.dtype == other.dtype and one.shape == other.shape
    a, b = (value.contiguous().reshape(-1).view(torch.uint8) for value in (one, other))
    return alike and torch.equal(a, b)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_as_it_was_sent(name):
    sent = Order(3, 0, {name: TENSORS[name]})
    received = decode_order(over_the_network(encode_order(sent, Rules()))).state[name]
    assert same_bits(received, TENSORS[name])
    assert received.is_contiguous() == (name != "image")
    received.reshape(-1)[:1].zero_()  # may be written to


def test_sparse_tensors_stay_sparse():
    dense = torch.zeros(4, 5, dtype=torch.bfloat16)
    dense[2, 3] = 1.5
    sent = Order(3, 0, {"w": dense.to_sparse()})
    received = decode_order(over_the_network(encode_order(sent, Rules()))).state["w"]
    assert received.layout == torch.sparse_coo
    assert received.coalesce().values().numel() == 1
    assert torch.equal(received.to_dense(), dense)


def test_an_order_is_read_as_it_was_written():
    rules = Rules(down=frozenset({"scaffold"}))
    sent = Order(
        3, 6, {}, 7, ("val", "test"), True, train_order(), personalize=1, kept=Receipt(2**61, 5)
    )
    assert decode_order(over_the_network(encode_order(sent, rules))) == sent


def test_an_answer_is_read_as_it_was_written():
    flags = {"global/acc": LogFlags(True, None)}
    sent = Answer(
        3, {"test": {"global/acc": 0.1 + 0.2}}, flags, None, True,
        ClientFailure(3, 1, "timeout", "too late"),
        PersonalResult(3, 12, {"test": 4}, ({"test": {"acc": 0.3}}, {"test": {"acc": 0.5}}), 0.25),
        ("DataError", "no such file"),
    )  # fmt: skip
    assert decode_answer(over_the_network(encode_answer(sent, Rules())), Rules()) == sent


def test_a_compressed_update_travels_as_its_payload():
    payload = torch.arange(100, dtype=torch.uint8)
    up = update(payload=payload, extras={"counts": torch.tensor([3])})
    rules = Rules(up=frozenset({"counts"}))
    records = encode_answer(Answer(3, trained=Trained(up, {}, {})), rules)
    assert not records.array_records["state"]
    received = decode_answer(over_the_network(records), rules).trained.update
    assert torch.equal(received.payload, payload)
    assert same_bits(received.extras["counts"], torch.tensor([3]))
    assert received.metrics["x"] == 0.1 + 0.2
    assert (received.unsent, received.version, received.num_examples) == (("body.0.bias",), 7, 12)


def test_what_says_who_a_node_is():
    sent = Passport(3, {"torch": "2"}, "ab", "cd", "(float32 4), 2 classes", {"train": 5})
    assert decode_passport(over_the_network(encode_passport(sent))) == sent


def test_what_another_version_says_of_a_node_is_refused():
    sent = Passport(3, {"torch": "2"}, "ab", "cd", "(float32 4), 2 classes", {"train": 5})
    records = encode_passport(sent)
    text = records.config_records["text"]
    text["json"] = str(text["json"]).replace("schema", "form")
    with pytest.raises(FederationError, match=r"says of itself cannot be read; install the server"):
        decode_passport(over_the_network(records))


# -- what must not travel ------------------------------------------------------------------------

KEPT = Rules.of(FedPer(), {"head.weight", "head.bias"})


def test_kept_parts_do_not_leave_the_server():
    with pytest.raises(FederationError, match=r"^head\.bias stays with the clients"):
        encode_order(Order(0, 0, {"body.w": torch.ones(1), "head.bias": torch.ones(1)}), KEPT)


@pytest.mark.parametrize("side", ["sent", "received"])
def test_kept_parts_do_not_leave_a_node(side):
    answer = Answer(0, trained=Trained(update(state={"head.weight": torch.ones(1)}), {}, {}))
    sending, receiving = (KEPT, Rules()) if side == "sent" else (Rules(), KEPT)
    with pytest.raises(FederationError, match=r"^head\.weight stays with the clients"):
        decode_answer(encode_answer(answer, sending), receiving)


def test_the_state_that_stays_at_the_node_is_in_no_record():
    kept = {"head.weight": torch.tensor([123.456])}
    records = encode_answer(Answer(0, trained=Trained(update(), kept, {}), keeps=True), Rules())
    assert all(not record for record in records.array_records.values())


def test_extras_that_nobody_declared_do_not_travel():
    rules = Rules.of(SCAFFOLD(), set())
    extras = {"scaffold/w": torch.ones(1)}
    encode_order(Order(0, 0, {}, train=train_order(extras=extras)), rules)
    with pytest.raises(FederationError, match=r"^secret is not declared"):
        encode_order(Order(0, 0, {}, train=train_order(extras={"secret": torch.ones(1)})), rules)
    with pytest.raises(FederationError, match=r"^secret is not declared"):
        encode_answer(
            Answer(0, trained=Trained(update(extras={"secret": torch.ones(1)}), {}, {})), rules
        )
