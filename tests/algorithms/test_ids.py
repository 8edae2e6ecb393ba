"""Iterative data smoothing: labels by hand, what it is at both ends, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedlightning import FedAvg, IterativeDataSmoothing, LocalOnly, PFedMe
from fedlightning.algorithms import Algorithm, ClientHook, SmoothedLabels
from fedlightning.datamodules import ClientDatasets, ZipfPreferences
from fedlightning.errors import ConfigError
from fedlightning.models import RewardMLP, RewardTable
from tests.toys import data, fit, loop_of, net, same, state, trainer

NAME = "ids:labels"


def pairs(sizes: tuple[int, ...] = (8, 6, 7), **kwargs: Any) -> ClientDatasets:
    """Return clients that compare items of four features."""
    made = []
    for seed, n in enumerate(sizes):
        x = torch.randn(n, 2, 4, generator=torch.Generator().manual_seed(seed))
        made.append((x, (x[:, 0, 0] > x[:, 1, 0]).float()))
    return ClientDatasets(train=made, test=made, **{"batch_size": 4, **kwargs})


def reward(seed: int = 0, **kwargs: Any) -> Any:
    settings = {"in_features": 4, "hidden": [5], "lr": 0.1, "lr_milestones": (), **kwargs}
    return net(seed, module=RewardMLP, **settings)


def labels_of(built: Any, client: int) -> Tensor:
    kept: Tensor = loop_of(built).client_store.get(client)[NAME]
    return kept


@pytest.mark.parametrize(
    ("beta", "rows"),
    [
        (0.3, [(0.5, 0.886738), (0.764278, 0.825401), (0.907398, 0.791521)]),
        (0.0, [(0.5, 1.0), (0.877541, 1.0), (1.171228, 1.0)]),
        (1.0, [(0.5, 0.622459)] * 3),
    ],
)
def test_one_pair_by_hand(beta, rows):
    one = (torch.tensor([[0, 1]]), torch.ones(1, dtype=torch.float64))
    for epochs, (gap, label) in enumerate(rows, start=1):
        module = RewardTable(2, lr=0.5, momentum=0.0, lr_milestones=()).double()
        built = fit(
            module, IterativeDataSmoothing(beta), rounds=1, federation={"local_epochs": epochs},
            datamodule=ClientDatasets(train=[one], test=[one]),
        )  # fmt: skip
        found = (module.rewards[0] - module.rewards[1]).item()
        assert found == pytest.approx(gap, abs=1e-6)
        assert labels_of(built, 0).item() == pytest.approx(label, abs=1e-6)


class WithDropout(RewardMLP):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body.append(torch.nn.BatchNorm1d(5))
        self.body.append(torch.nn.Dropout(0.4))


def test_without_smoothing_it_is_fedavg_bit_for_bit():
    settings = {"in_features": 4, "hidden": [5], "lr": 0.1}
    ours, plain = (net(module=WithDropout, **settings) for _ in range(2))
    built = fit(ours, IterativeDataSmoothing(0.0), federation={"local_epochs": 2},
                datamodule=pairs())  # fmt: skip
    fit(plain, FedAvg(), federation={"local_epochs": 2}, datamodule=pairs())
    assert same(state(ours), state(plain))
    assert not same(state(ours), state(net(module=WithDropout, **settings)))
    assert set(labels_of(built, 0).tolist()) == {0.0, 1.0}


class Looking(ClientHook):
    """Looks at all examples after each epoch, and at which examples a batch has."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def on_loss(self, context: Any, batch: Any, loss: Tensor) -> Tensor:
        stored = torch.cat([x for x, _ in context.stored_batches()])
        self.seen.append((len(batch[1]), torch.equal(batch[0], stored[context.positions(
            self.batch_of(context))])))  # fmt: skip
        return loss

    def batch_of(self, context: Any) -> int:
        context.scratch["at"] = context.scratch.get("at", -1) + 1
        return int(context.scratch["at"] % -(-context.num_examples // 4))

    def on_epoch_end(self, context: Any, epoch: int) -> None:
        before = [child.training for child in context.module.modules()]
        with context.evaluating():
            assert not any(child.training for child in context.module.modules())
            for x, _ in context.stored_batches():
                assert not context.module(x).requires_grad
                torch.rand(3)
        assert [child.training for child in context.module.modules()] == before


def test_a_look_at_all_examples_does_not_disturb_training():
    settings = {"in_features": 4, "hidden": [5], "lr": 0.1}
    looked_at, plain = (net(module=WithDropout, **settings) for _ in range(2))
    seen: list[Any] = []
    fit(looked_at, Algorithm(local=[Looking(seen)]), federation={"local_epochs": 2},
        datamodule=pairs())  # fmt: skip
    fit(plain, FedAvg(), federation={"local_epochs": 2}, datamodule=pairs())
    assert same(state(looked_at), state(plain))
    assert len(seen) == 2 * 2 * (2 + 2 + 2)
    assert all(right for _, right in seen)


def test_whole_steps_with_a_model_that_stands_still_give_its_probabilities():
    module = reward(lr=1e-30)
    built = fit(module, IterativeDataSmoothing(1.0), rounds=1, datamodule=pairs())
    assert same(state(module), state(reward()))
    made = pairs()
    made.setup()
    for client in range(3):
        x = torch.cat([inputs for inputs, _ in made.batches(client, "train")])
        want = module(x).detach().double().sigmoid().float()
        assert torch.equal(labels_of(built, client), want)


def test_labels_stay_probabilities_move_apart_and_outlive_rounds_without_their_client():
    cohorts = [(0, 1), (0,), (0,)]
    built = trainer(IterativeDataSmoothing(0.4), rounds=3, cohort=2,
                    federation={"local_epochs": 3})  # fmt: skip
    loop_of(built).cohort = cohorts.__getitem__
    built.fit(reward(), datamodule=pairs())
    once = trainer(IterativeDataSmoothing(0.4), rounds=1, cohort=2,
                   federation={"local_epochs": 3})  # fmt: skip
    loop_of(once).cohort = cohorts.__getitem__
    once.fit(reward(), datamodule=pairs())
    assert torch.equal(labels_of(built, 1), labels_of(once, 1))
    assert not torch.equal(labels_of(built, 0), labels_of(once, 0))
    assert loop_of(built).client_store.get(2) is None
    for client in (0, 1):
        labels = labels_of(built, client)
        assert labels.dtype == torch.float32
        assert ((labels >= 0) & (labels <= 1)).all()
        assert len(set(labels.tolist())) > 2


def test_labels_of_examples_that_training_leaves_out_move_too():
    built = fit(reward(), IterativeDataSmoothing(0.4), rounds=1, datamodule=pairs(),
                limit_train_batches=1)  # fmt: skip
    assert ((labels_of(built, 0) > 0) & (labels_of(built, 0) < 1)).all()


def test_a_table_of_rewards_overfits_less():
    def largest(beta: float) -> float:
        data = ZipfPreferences(2, 30, exponent=2.0, batch_size=15, seed=3)
        module = RewardTable(lr=4.0, momentum=0.0, lr_milestones=())
        fit(module, IterativeDataSmoothing(beta), rounds=40, datamodule=data)
        return float(module.rewards.detach().abs().max())

    assert largest(0.2) < 0.7 * largest(0.0)


@pytest.mark.parametrize("beta", [-0.1, 1.5, "much"])
def test_beta_is_a_share(beta):
    with pytest.raises(ConfigError, match=r"algorithm\.beta must be in \[0, 1\], got "):
        IterativeDataSmoothing(beta)


def test_classes_are_refused():
    with pytest.raises(ConfigError, match="one floating-point label in"):
        fit(net(), IterativeDataSmoothing(), datamodule=data())


class TwoOutputs(RewardMLP):
    def forward(self, pairs: Tensor) -> Tensor:
        gaps: Tensor = super().forward(pairs)
        return torch.stack([gaps, -gaps], dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0])[:, 0] - batch[1]).square().mean()

    def test_step(self, batch: Any, batch_idx: int) -> None: ...

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


def test_a_forward_pass_without_gaps_is_refused():
    with pytest.raises(ConfigError, match="TwoOutputs returns something else"):
        fit(net(module=TwoOutputs, in_features=4), IterativeDataSmoothing(), datamodule=pairs())


class OwnBatches(ClientDatasets):
    def batches(self, client: int, split: str, *, key: Any = None, device: Any = "cpu") -> Any:
        for x, y in super().batches(client, split, key=key, device=device):
            yield x[:1], y[:1]


def test_data_whose_batches_are_not_those_it_states_is_refused():
    made = pairs()
    own = OwnBatches(train=made._sources[0], test=made._sources[1], batch_size=4)
    with pytest.raises(ConfigError, match=r"has 1 examples where .* epoch_batches\(\) says 4"):
        fit(reward(), Algorithm(local=[Ones()]), datamodule=own)


class Ones(SmoothedLabels):
    """Starts with labels of one, whatever the data say."""

    def on_update_start(self, context: Any) -> None:
        context.scratch[NAME] = torch.ones(context.num_examples)


class Fewer(SmoothedLabels):
    """Loses a label."""

    def on_update_end(self, context: Any) -> None:
        context.keep_values(NAME, context.scratch[NAME][:-1])


def test_data_that_has_changed_since_is_refused():
    with pytest.raises(ConfigError, match=r"client \d has kept \d labels and has \d examples"):
        fit(reward(), Algorithm(local=[Fewer(0.3)]), datamodule=pairs())


def test_it_makes_sense_where_nothing_is_shared_and_not_with_another_step():
    built = fit(reward(), IterativeDataSmoothing() + LocalOnly(), datamodule=pairs())
    assert NAME in loop_of(built).client_store.get(0)
    with pytest.raises(ConfigError, match="each says how to train on a batch"):
        _ = IterativeDataSmoothing() + PFedMe()
