"""FedRes against plain loops, and what its switched-off halves are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlightning import (
    FedAvg,
    FedAvgM,
    FedPer,
    FedRep,
    FedRes,
    LocalOnly,
    PerFedAvg,
    PersonalizationCallback,
)
from fedlightning.algorithms import Algorithm, KeptOptimizer
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError
from fedlightning.models import ResidualMLP
from tests.algorithms.by_hand import SIZES, batches, clients
from tests.toys import CLASSES, FEATURES, Net, data, fit, loop_of, net, same, state, trainer

LR, PRIVATE_LR, MOMENTUM = 0.1, 0.04, 0.5
SCHEMES = ["sgd", "avg", "corrected", "simultaneous"]


class InOrder(ClientDatasets):
    """Clients that visit their examples in stored order, in every epoch."""

    def epoch_order(self, key: Any, num_examples: int) -> Tensor:
        return torch.arange(num_examples)


def pair(seed: int = 0, **kwargs: Any) -> ResidualMLP:
    made: ResidualMLP = net(
        seed, module=ResidualMLP, in_features=FEATURES, shared_hidden=[5], num_classes=CLASSES,
        **{"lr": LR, "private_lr": PRIVATE_LR, "momentum": MOMENTUM, "lr_milestones": (),
           **kwargs},
    ).double()  # fmt: skip
    return made


def in_order(sizes: tuple[int, ...] = (8, 6, 7), alike: bool = False) -> InOrder:
    """Return clients in float64, with the same examples each if ``alike``."""
    made = data(sizes)
    made.setup()
    pairs = []
    for client in range(len(sizes)):
        x, y = next(iter(made.batches(0 if alike else client, "test")))
        pairs.append((x.double(), y))
    return InOrder(train=pairs, test=pairs, num_classes=CLASSES, batch_size=3)


def trained(algorithm: Algorithm, module: Any, rounds: int = 3, **kwargs: Any) -> Any:
    built = trainer(algorithm, rounds=rounds, cohort=1.0, federation={"local_epochs": 2})
    if (cohorts := kwargs.get("cohorts")) is not None:
        loop_of(built).cohort = cohorts.__getitem__
    built.fit(module, datamodule=kwargs.get("datamodule") or clients())
    return loop_of(built)


def kept_of(loop: Any, client: int, start: str) -> dict[str, Tensor]:
    kept = loop.client_store.get(client)
    return {k: value for k, value in kept.items() if k.startswith(start)}


def test_the_first_loss_is_the_logarithm_of_the_number_of_classes():
    module = pair()
    x, y = torch.rand(9, FEATURES, dtype=torch.float64), torch.arange(9) % CLASSES
    loss = F.cross_entropy(module(x), y)
    assert not module(x).any()
    assert loss.item() == pytest.approx(1.098612, abs=1e-6)
    assert loss.item() == pytest.approx(math.log(CLASSES), abs=1e-15)
    loss.backward()
    for network in (module.shared, module.private):
        assert network[-1].weight.grad.abs().sum() > 0
    assert not module.shared[1].weight.grad.any()


class Sgd:
    """Momentum and a step, as the textbook has them."""

    def __init__(self, parameters: list[Tensor], lr: float) -> None:
        self.parameters, self.lr = parameters, lr
        self.velocity: list[Tensor | None] = [None] * len(parameters)

    def step(self, gradients: list[Tensor]) -> None:
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
                before = self.velocity[i]
                self.velocity[i] = g.clone() if before is None else MOMENTUM * before + g
                p -= self.lr * self.velocity[i]


def alternating(scheme: str, rounds: int, keep_optimizer: bool = False) -> ResidualMLP:
    """Return what a single client is trained to, by loops that know of no federation."""
    module = pair()
    halves = {
        "v": (list(module.private.parameters()), PRIVATE_LR),
        "w": (list(module.shared.parameters()), LR),
    }

    def loss(batch: Any) -> Tensor:
        x, y = batch
        hidden = torch.relu(x @ module.shared[1].weight.T + module.shared[1].bias)
        logits = hidden @ module.shared[3].weight.T + module.shared[3].bias
        logits = logits + x @ module.private[1].weight.T + module.private[1].bias
        return F.cross_entropy(logits, y)

    optimizers = {name: Sgd(*half) for name, half in halves.items()}
    for round_ in range(rounds):
        if not keep_optimizer:
            optimizers = {name: Sgd(*half) for name, half in halves.items()}

        def step(name: str, batch: Any, optimizers: Any = optimizers) -> None:
            gradients = torch.autograd.grad(loss(batch), halves[name][0])
            optimizers[name].step(list(gradients))

        if scheme == "simultaneous":
            for number, batch in enumerate(batches(0, round_, epochs=4)):
                step("wv"[number % 2 == 0], batch)
            continue
        for batch in batches(0, round_, epochs=[0, 1]):
            step("v", batch)
        second = batches(0, round_, epochs=[2, 3])
        if scheme == "avg":
            for batch in second:
                step("w", batch)
        else:  # all of both epochs as one batch
            step("w", tuple(torch.cat(part) for part in zip(*second, strict=True)))
    return module


@pytest.mark.parametrize("keep_optimizer", [False, True])
@pytest.mark.parametrize("scheme", ["sgd", "avg", "simultaneous"])
def test_a_single_client_trains_as_a_loop_without_federation_does(scheme, keep_optimizer):
    module = pair()
    algorithm = FedRes(scheme, keep_optimizer=keep_optimizer)
    loop = trained(algorithm, module, cohorts=[(0,)] * 3)
    want = state(alternating(scheme, 3, keep_optimizer))
    for key, value in {**state(module), **kept_of(loop, 0, "private.")}.items():
        assert torch.allclose(value, want[key], rtol=1e-12, atol=1e-12), key


def half_frozen() -> ResidualMLP:
    module = pair()
    module.private.requires_grad_(False)
    return module


@pytest.mark.parametrize("scheme", ["avg", "corrected"])
def test_with_the_private_half_frozen_it_is_fedavg_bit_for_bit(scheme):
    frozen, plain = half_frozen(), half_frozen()
    trained(FedAvg(weights="uniform"), plain, datamodule=in_order())
    if scheme == "corrected":  # in the first round, before there is anything to correct
        trained(FedAvg(weights="uniform"), plain := half_frozen(), 1, datamodule=in_order())
    trained(FedRes(scheme), frozen, 1 if scheme == "corrected" else 3, datamodule=in_order())
    assert same(state(frozen), state(plain))
    assert not same(state(frozen), state(pair()))


def test_by_turns_with_the_private_half_frozen_it_is_fedavg_on_every_second_batch():
    made = in_order((4, 4, 4))
    made.setup()
    pairs = [next(iter(made.batches(client, "test"))) for client in range(3)]
    rows = [0, 1, 0, 1, 2, 3, 2, 3]  # of batches of two, each comes twice
    twice = [(x[rows], y[rows]) for x, y in pairs]
    settings = {"num_classes": CLASSES, "batch_size": 2}
    frozen, plain = half_frozen(), half_frozen()
    trained(
        FedAvg(weights="uniform"), plain, datamodule=InOrder(train=pairs, test=pairs, **settings)
    )
    built = trainer(FedRes("simultaneous"), rounds=3, cohort=1.0)
    built.fit(frozen, datamodule=InOrder(train=twice, test=pairs, **settings))
    assert same(state(frozen), state(plain))
    assert not same(state(frozen), state(pair()))


def test_with_the_shared_half_frozen_it_is_local_training_bit_for_bit():
    frozen, plain = pair(), pair()
    for module in (frozen, plain):
        module.shared.requires_grad_(False)
    ours, local = trained(FedRes(), frozen), trained(LocalOnly(), plain)
    for client in range(len(SIZES)):
        assert same(kept_of(ours, client, "private."), kept_of(local, client, "private."))
    assert same(state(frozen), state(pair()))


def controls(loop: Any, key: str = "scaffold/shared.1.weight") -> Tensor:
    """Return c_k of all clients; one that never trained has no gradient of its own."""
    mean = loop.server.state_dict()[key]
    kept = [loop.client_store.get(client) or {} for client in range(loop.data.num_clients)]
    return torch.stack([own.get(key, torch.zeros_like(mean)) - mean for own in kept])


def test_the_correction_of_identical_clients_is_zero_and_the_result_that_of_option_one():
    one, two = pair(), pair()
    trained(FedRes("avg"), one, datamodule=in_order(alike=True))
    loop = trained(FedRes("corrected"), two, datamodule=in_order(alike=True))
    assert controls(loop).abs().max() < 1e-15
    for key, value in state(one).items():
        assert torch.allclose(value, state(two)[key], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("cohorts", [[(0, 1, 2, 3)] * 3, [(0, 1), (3,), (2, 1, 0)], [(2,)] * 3])
def test_corrections_sum_to_zero_over_all_clients(cohorts):
    loop = trained(FedRes("corrected"), pair(), cohorts=cohorts)
    for key in ("scaffold/shared.1.weight", "scaffold/shared.3.bias"):
        found = controls(loop, key)
        assert found.abs().max() > 1e-4
        assert found.sum(dim=0).abs().max() < 1e-12


def test_a_correction_changes_what_the_shared_model_learns():
    one, two = pair(), pair()
    trained(FedRes("avg"), one)
    trained(FedRes("corrected"), two)
    assert not same(state(one), state(two))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_client_predicts_with_both_and_a_new_one_trains_the_private_one_alone(scheme):
    module, callback = pair(), PersonalizationCallback(part="private", epochs=2, lr=0.1)
    held = clients()
    held = type(held)(train=held._sources[0], test=held._sources[1], num_classes=CLASSES,
                      batch_size=4, held_out_clients=1, seed=0)  # fmt: skip
    built = trainer(FedRes(scheme), rounds=2, cohort=1.0, callbacks=[callback])
    with pytest.warns(UserWarning, match="nearest class means is not measured"):
        built.fit(module, datamodule=held)
    loop = loop_of(built)
    for result in callback.results:
        own = {**state(module), **kept_of(loop, result.client, "private.")}
        x, y = (torch.cat(part) for part in zip(*held.batches(result.client, "test"), strict=True))
        hidden = torch.relu(x @ own["shared.1.weight"].T + own["shared.1.bias"])
        logits = hidden @ own["shared.3.weight"].T + own["shared.3.bias"]
        logits = logits + x @ own["private.1.weight"].T + own["private.1.bias"]
        assert result.record.loss_before == pytest.approx(float(F.cross_entropy(logits, y)))
    (new,) = [r for view in callback.views if view.view.name == "held_out" for r in view.results]
    assert new.record.loss_after < new.record.loss_before
    assert loop.client_store.get(new.client) is None


def test_an_unknown_scheme_is_an_error():
    with pytest.raises(ConfigError, match=r"sgd, avg, corrected, simultaneous, got 'simul'"):
        FedRes("simul")  # type: ignore[arg-type]


def test_a_module_without_a_private_part_is_refused():
    with pytest.raises(ConfigError, match=r"'full - private': Net has no part 'private'"):
        fit(net(), FedRes())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (FedRep(1), "each divides an update into phases"),
        (PerFedAvg(), "each says how to train on a batch"),
        (FedRes(), "both are ResidualPhases"),
        (LocalOnly(), "needs a global model"),
        (Algorithm(train="body"), "train is 'full' for the one and 'body' for the other"),
    ],
    ids=str,
)
def test_what_does_not_go_with_it_is_refused(other, reason):
    with pytest.raises(ConfigError, match=reason):
        _ = FedRes() + other


@pytest.mark.parametrize("other", [FedAvgM(lr=0.5), FedPer()], ids=str)
def test_other_algorithms_compose(other):
    class Both(Net):
        parts = {"private": "extra"}  # noqa: RUF012

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.extra = torch.nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.extra(x)

    loop = loop_of(fit(module := net(module=Both), FedRes() + other))
    private = {"extra.weight", "extra.bias"}
    kept = {"head.weight", "head.bias"} if isinstance(other, FedPer) else set()
    assert set(loop.client_store.get(0)) == private | kept
    assert same({k: state(module)[k] for k in private}, {k: state(net(module=Both))[k] for k in
                                                         private})  # fmt: skip


def test_an_optimizer_that_remembers_more_than_tensors_cannot_be_kept():
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["calls"] = self.state[p].get("calls", 0) + 1
            return super().step(closure)

    class Counted(Net):
        def configure_optimizers(self) -> Any:
            return Counting(self.parameters(), lr=0.1)

    with pytest.raises(ConfigError, match=r"Counting remembers calls=\d+, which is not a tensor"):
        fit(net(module=Counted), Algorithm(local=[KeptOptimizer()]))
