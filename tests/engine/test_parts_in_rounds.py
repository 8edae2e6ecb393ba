"""Parts by name in a run: what is trained, what is shared, what stays with a client."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from fedlightning import (
    Algorithm,
    AtomicCheckpointIO,
    FedAvg,
    FedBABU,
    FedBN,
    FederatedModule,
    FedPer,
    PersonalizationCallback,
)
from fedlightning.algorithms import ServerData
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.models import MLP
from tests.toys import Net, data, fit, loop_of, net, same, state, trainer


class Slopes(pl.LightningModule):
    """A loss that is linear in each of three numbers: its gradient is the mean input."""

    parts: ClassVar[Any] = {"adapter": "*.lora_?", "head": "out"}

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Module(), nn.Module()
        self.layer.base, self.layer.lora_A, self.out.weight = (
            nn.Parameter(torch.zeros(())) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 2)  # for the evaluation

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        weights = torch.stack([self.layer.lora_A, self.out.weight, self.layer.base])
        return (batch[0] * weights).sum(dim=1).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def slopes(*rows: tuple[float, float, float], sizes: tuple[int, ...] = (1, 3)) -> ClientDatasets:
    """Return clients of which each has one input many times."""
    pairs = [
        (torch.tensor([row] * n), torch.zeros(n, dtype=torch.long))
        for row, n in zip(rows, sizes, strict=True)
    ]
    return ClientDatasets(train=pairs, test=pairs, batch_size=4)


def test_an_adapter_is_averaged_while_heads_stay_with_the_clients_by_hand():
    module = Slopes()
    algorithm = Algorithm(train="adapter + head", share="adapter")
    built = fit(module, algorithm, datamodule=slopes((1, 2, 5), (3, 4, 5)))
    assert {key: float(value) for key, value in state(module).items()} == {
        "layer.base": 0.0,
        "layer.lora_A": -5.0,  # -(1 + 3 * 3) / 4 in each of two rounds
        "out.weight": 0.0,
    }
    own = [loop_of(built).personal_model(client) for client in (0, 1)]
    assert [{k: float(v) for k, v in model.items()} for model in own] == [
        {"out.weight": -4.0},
        {"out.weight": -8.0},
    ]
    assert float(built.callback_metrics["communication/bytes_up"]) == 2 * 4


def test_the_body_is_what_no_other_part_has():
    module = Slopes()
    fit(module, FedBABU(), datamodule=slopes((1, 2, 5), (3, 4, 7)))
    assert {key: float(value) for key, value in state(module).items()} == {
        "layer.base": -12.0,
        "layer.lora_A": 0.0,
        "out.weight": 0.0,
    }


class Private(Net):
    """Has a second network, whose logits are added."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.private_net = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.private_net(x)


def test_a_second_network_stays_with_its_client():
    module = net(module=Private, parts={"private": "private_net"})
    before = state(module)
    built = fit(module, Algorithm(share="full - private"))
    private = ("private_net.weight", "private_net.bias")
    loop = loop_of(built)
    assert loop.roles.shared == ("body.0.weight", "body.0.bias", "head.weight", "head.bias")
    assert all(torch.equal(state(module)[key], before[key]) for key in private)
    own = [loop.personal_model(client) for client in range(4)]
    assert all(tuple(model) == private for model in own)
    assert not any(torch.equal(own[0][key], model[key]) for model in own[1:] for key in private)
    reference = net(module=Private)
    fit(reference, FedAvg(), rounds=1)
    alone = net(module=Private, parts={"private": "private_net"})
    fit(alone, Algorithm(share="full - private"), rounds=1)
    shared = loop.roles.shared  # in the first round nothing tells the two apart but what is sent
    assert all(torch.equal(state(alone)[key], state(reference)[key]) for key in shared)


def _class_attribute() -> Any:
    class Named(Net):
        parts = {"bias": "*.bias"}  # noqa: RUF012

    return Named()


def _attribute() -> Any:
    module = Net()
    module.parts = {"bias": "*.bias"}
    return module


def _hyperparameter() -> Any:
    class Named(pl.LightningModule):
        def __init__(self, parts: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(x))
            return logits

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Named({"bias": ["*.bias"]})


@pytest.mark.parametrize(
    "make",
    [
        _class_attribute,
        _attribute,
        _hyperparameter,
        lambda: Net(parts={"bias": "*.bias"}),
        lambda: MLP(in_features=4, hidden=[5], num_classes=3, parts={"bias": "*.bias"}),
    ],
)
def test_a_module_names_its_parts_by_an_attribute_or_an_argument(make):
    module = make()
    before = state(module)
    fit(module, Algorithm(train="bias", share="bias - head"))
    changed = {k for k, v in state(module).items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.endswith("bias") and k != "head.bias"}


def test_a_head_among_the_parts_is_the_head():
    module = net(parts={"head": "body.0"})
    assert module.part_keys("head") == ("body.0.weight", "body.0.bias")
    before = state(module)
    fit(module, FedBABU())
    assert torch.equal(state(module)["body.0.weight"], before["body.0.weight"])
    assert not torch.equal(state(module)["head.weight"], before["head.weight"])
    other = net(parts={"head": "body.0"})
    fit(other, FedBABU(), federation={"head": "head"})
    assert torch.equal(state(other)["head.weight"], before["head.weight"])


def test_a_part_that_does_not_exist_is_refused_whatever_the_algorithm():
    with pytest.raises(ConfigError, match=r"parts\['adapter'\]='\*\.lora' matches no parameter"):
        fit(net(parts={"adapter": "*.lora"}), FedAvg())


def test_an_algorithm_that_names_another_part_is_refused_before_the_first_round():
    with pytest.raises(
        ConfigError, match=r"^algorithm\.train='adaptor': Net has no part 'adaptor'"
    ):
        fit(net(parts={"adapter": "body"}), Algorithm(train="adaptor"))


class Hooked(Net):
    """Notes which of its hooks are called."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.called: set[str] = set()

    def freeze_head(self) -> None:
        self.called.add("head")
        super().freeze_head()

    def freeze_body(self) -> None:
        self.called.add("body")
        super().freeze_body()


@pytest.mark.parametrize(
    ("train", "called", "moved"),
    [
        ("full", set(), {"body.0.weight", "body.0.bias", "head.weight", "head.bias"}),
        ("body", {"head"}, {"body.0.weight"}),
        ("bias", {"body"}, {"body.0.bias", "head.bias"}),
        ("bias + head", {"body"}, {"body.0.bias", "head.weight", "head.bias"}),
        ("bias - head", {"body", "head"}, {"body.0.bias"}),
        ("full - bias", set(), {"body.0.weight", "head.weight"}),
    ],
)
def test_a_part_is_frozen_by_its_hook_if_nothing_of_it_is_trained(train, called, moved):
    module = net(module=Hooked, parts={"bias": "*.bias"})
    before = state(module)
    fit(module, Algorithm(train=train))
    assert module.called == called
    assert {k for k, v in state(module).items() if not torch.equal(v, before[k])} == moved
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("algorithm", [FedBN(), FedBABU() + FedBN(), FedPer() + FedBN()])
def test_what_leaves_norm_layers_to_clients_shares_everything_else_of_its_part(algorithm):
    module = net(norm=True)
    loop = loop_of(fit(module, algorithm, datamodule=data((8, 6, 7, 6))))
    norm = {key for key in state(module) if key.startswith("body.1.")}
    heads = set() if algorithm.name == "FedBN" else {"head.weight", "head.bias"}
    assert set(loop.roles.shared) == set(state(module)) - norm - heads
    assert norm <= set(loop.roles.kept)


@pytest.mark.parametrize(
    ("former", "present"),
    [
        (Algorithm(own_norms=True), Algorithm(share="full - norm")),
        (Algorithm(own_norms=True, share="body"), Algorithm(share="body-norm")),
        (Algorithm(own_norms=True, share="none"), Algorithm(share="none")),
        (Algorithm(own_norms=False), Algorithm()),
        (FedBN(share="body", own_norms=True), FedBN(share="body")),
    ],
)
def test_own_norms_of_earlier_versions_says_the_same(former, present):
    assert former == present
    assert repr(former) == repr(present)


@pytest.mark.parametrize(
    ("saved", "algorithm"),
    [
        ("FedBN(own_norms=True)", FedBN()),
        (
            "FedBN(weights='uniform', keep=True, own_norms=True)",
            FedBN(weights="uniform", keep=True),
        ),
        (
            "FedBABU(train='body', share='body', weights='uniform') + FedBN(own_norms=True)",
            FedBABU() + FedBN(),
        ),
        ("Algorithm(share='body', own_norms=True)", Algorithm(share="body - norm")),
        (
            "ServerData(server_data=ServerTraining(fraction=0.5, epochs=1, part=None))",
            ServerData(fraction=0.5),
        ),
    ],
)
def test_a_checkpoint_of_an_earlier_version_is_resumed(saved, algorithm, tmp_path):
    settings = {"datamodule": data((8, 6, 7, 6))}
    whole, module = net(norm=True, lr_milestones=()), net(norm=True, lr_milestones=())
    fit(whole, algorithm, rounds=2, **settings)
    first = fit(module, algorithm, rounds=1, **settings)
    first.save_checkpoint(tmp_path / "one.ckpt")
    content = torch.load(tmp_path / "one.ckpt", weights_only=True)
    extra = content["loops"]["fit_loop"]["state_dict"]["extra"]
    extra["settings"]["federation.algorithm"] = saved
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "old.ckpt")
    fit(module, algorithm, rounds=2, ckpt=tmp_path / "old.ckpt", **settings)
    assert same(state(module), state(whole))
    with pytest.raises(CheckpointError, match=r"federation\.algorithm: .* -> FedAvg\(\)"):
        fit(module, FedAvg(), rounds=2, ckpt=tmp_path / "old.ckpt", **settings)


def test_a_run_is_not_resumed_with_other_parts(tmp_path):
    first = fit(net(parts={"some": "body"}), FedAvg(), rounds=1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(CheckpointError, match=r"parts: \{'some': 'body'\} -> \{'some': 'head'\}"):
        fit(net(parts={"some": "head"}), FedAvg(), rounds=2, ckpt=tmp_path / "one.ckpt")


def test_the_server_trains_a_part_by_name():
    module = net(parts={"bias": "*.bias"})
    algorithm = Algorithm(train="bias", share="bias + head") + ServerData(0.5, part="bias-head")
    before = state(module)
    fit(module, algorithm)
    assert torch.equal(state(module)["head.weight"], before["head.weight"])
    with pytest.raises(
        ConfigError, match="the server cannot train part 'head' where clients train"
    ):
        _ = Algorithm(train="bias", share="bias + head") + ServerData(part="head")


def personal_states(module: Any, part: str) -> list[dict[str, torch.Tensor]]:
    """Return every client's own model after fine-tuning a part of the initial model."""
    callback = PersonalizationCallback(part=part, epochs=2, lr=0.1)
    built = trainer(FedBABU())
    built.validate(module, datamodule=data((8, 6, 7, 8)), verbose=False)
    states = []
    with callback.personalizer(built).at_work() as personalizer:
        for client in range(4):
            personalizer.client(client)
            states.append(state(module))
    return states


@pytest.mark.parametrize("part", ["bias", "bias + head", "full - norm", "head - bias", "norm"])
def test_fine_tuning_changes_the_keys_of_an_expression_and_no_others(part):
    module = net(norm=True, parts={"bias": "body.0.bias"})
    globally, moving = state(module), set(module.part_keys(part))
    if part == "head - bias":
        assert moving == {"head.weight", "head.bias"}
    for personal in personal_states(module, part):
        changed = {k for k, value in personal.items() if not torch.equal(value, globally[k])}
        assert changed == moving


def test_personalization_of_a_part_that_does_not_exist_is_refused_before_the_first_round():
    module = net()
    before = state(module)
    with pytest.raises(ConfigError, match=r"^part='tail': Net has no part 'tail'"):
        fit(module, FedBABU(), callbacks=[PersonalizationCallback(part="tail")])
    assert same(state(module), before)


def test_a_module_without_head_is_asked_for_it_only_where_that_matters():
    class Headless(FederatedModule):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(lr=0.1, **kwargs)
            self.net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.net(x)
            return logits

    fit(Headless(), FedAvg())
    named = Headless(parts={"last": "net.2"})
    before = state(named)
    fit(named, Algorithm(train="body", share="body"))
    assert torch.equal(state(named)["net.2.weight"], before["net.2.weight"])
    for module in (Headless(), Headless(parts={"last": "net.2"})):
        with pytest.raises(ConfigError, match=r"head='head' matches no parameter of Headless"):
            fit(module, Algorithm(share="full - head"))
