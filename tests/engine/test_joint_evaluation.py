"""Clients evaluated in shared forward passes score what a plain loop over their data measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning import FedAvg, FederatedModule, FederatedTrainer, Federation
from fedlightning.core.views import EvaluationView
from fedlightning.datamodules import FederatedArrays, NaturalIds
from fedlightning.engine import joint_evaluation
from fedlightning.engine.joint_evaluation import JointEvaluation, obstacle

SIZES = [3, 10, 1, 47, 12, 100, 7, 7, 31, 32, 33, 2]
QUIET: dict[str, Any] = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "accelerator": "cpu",
}  # fmt: skip


class Perceptron(FederatedModule):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__(lr=0.1, lr_milestones=())
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(24, 5)


class Odd(FederatedModule):
    """Layers whose rows do not fill vector registers."""

    def __init__(self) -> None:
        super().__init__(lr=0.1, lr_milestones=())
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 27), nn.ReLU(), nn.Linear(27, 13))
        self.head = nn.Linear(13, 5)


class Convolutions(FederatedModule):
    """Convolution, BatchNorm with running statistics, pooling."""

    def __init__(self) -> None:
        super().__init__(lr=0.1, lr_milestones=())
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.body[1].running_mean.copy_(torch.randn(6))
        self.head = nn.Linear(54, 5)


class BatchStatistics(Convolutions):
    """What it makes of an example depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body[1] = nn.BatchNorm2d(6, track_running_stats=False)


class CountsBatches(Perceptron):
    """Has a step of its own."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("global/acc", float(batch_idx), batch_size=len(batch[1]))


class Hooked(Perceptron):
    """Has a hook around its batches."""

    def on_test_batch_end(self, *args: Any) -> None:
        self.log("global/hooked", 1.0)


class Augmented(FederatedArrays):
    """Adds noise to test data, too."""

    def transform_batch(self, batch: Any, training: bool) -> Any:
        x, y = batch
        return x + torch.randn_like(x), y


class Scores(pl.Callback):
    """Remembers what each client scores."""

    def __init__(self) -> None:
        self.of: dict[int, dict[str, float]] = {}

    def on_test_batch_end(
        self, trainer: Any, module: Any, outputs: Any, task: Any, *_: Any
    ) -> None:
        self.of[task.client] = dict(outputs)


def clients(sizes: Sequence[int] = SIZES, kind: type = FederatedArrays, **settings: Any) -> Any:
    draw = np.random.default_rng(4)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    x = draw.normal(size=(len(owners), 1, 8, 8)).astype(np.float32)
    y = draw.integers(5, size=len(owners))
    settings = {"batch_size": 10, "num_classes": 5, "seed": 0, **settings}
    return kind((x, y), (x, y), partition=NaturalIds(owners, owners), **settings)


def trainer(*callbacks: pl.Callback, **settings: Any) -> FederatedTrainer:
    federation = Federation(FedAvg(), cohort_size=2, seed=0, channels_last=False)
    return FederatedTrainer(federation=federation, callbacks=list(callbacks), **QUIET, **settings)


def scores_of(
    module: pl.LightningModule, data: Any, **settings: Any
) -> dict[int, dict[str, float]]:
    scores = Scores()
    trainer(scores, **settings).test(module, datamodule=data, verbose=False)
    return scores.of


@pytest.fixture
def joint(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the clients that were evaluated jointly."""
    asked: list[int] = []
    of_client = JointEvaluation.of_client

    def noting(self: JointEvaluation, task: Any) -> Any:
        found = of_client(self, task)
        if found is not None:
            asked.append(task.client)
        return found

    monkeypatch.setattr(JointEvaluation, "of_client", noting)
    return asked


@pytest.mark.parametrize("network", [Perceptron, Convolutions])
@pytest.mark.parametrize("batch_size", [1, 10, 40])
def test_clients_score_what_a_plain_loop_measures(
    network: type[FederatedModule], batch_size: int, joint: list[int]
) -> None:
    data, module = clients(batch_size=batch_size), network()
    found = scores_of(module, data)
    assert joint == list(range(len(SIZES)))
    module.eval()
    for client, size in enumerate(SIZES):
        [(x, y)] = data.batches(client, "test") if size <= batch_size else [
            tuple(map(torch.cat, zip(*data.batches(client, "test"), strict=True)))
        ]  # fmt: skip
        assert len(y) == size
        with torch.no_grad():
            logits = module(x).double()
        right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, y, strict=True))
        assert found[client]["global/acc"] == pytest.approx(right / size, abs=1e-6)
        loss = F.cross_entropy(logits, y).item()
        assert found[client]["global/loss"] == pytest.approx(loss, rel=1e-5)


def test_a_batch_of_many_rows_has_the_bits_of_an_epoch_of_its_own(
    monkeypatch: pytest.MonkeyPatch, joint: list[int]
) -> None:
    sizes = [64, 96, 32]
    together = scores_of(Convolutions(), clients(sizes, batch_size=32))
    assert joint == [0, 1, 2]
    monkeypatch.setattr("fedlightning.engine.evaluation.obstacle", lambda *_: "not here")
    assert scores_of(Convolutions(), clients(sizes, batch_size=32)) == together
    assert joint == [0, 1, 2]


@pytest.mark.parametrize("network", [Perceptron, Odd, Convolutions])
def test_a_client_scores_the_same_whoever_is_evaluated_with_it(
    network: type[FederatedModule], joint: list[int]
) -> None:
    everyone = scores_of(network(), clients())
    for client in (0, 2, 4, 11):

        class Alone(FederatedArrays):
            def evaluation_views(self, alone: int = client) -> Any:
                return [EvaluationView("", (alone,))]

        assert scores_of(network(), clients(kind=Alone)) == {client: everyone[client]}
    first = scores_of(network(), clients(), limit_test_batches=5)
    assert first == {client: everyone[client] for client in range(5)}
    assert len(joint) == len(SIZES) + 4 + 5


def test_two_workers_give_the_bits_of_one() -> None:
    results = [
        trainer(devices=n, strategy=strategy).test(Convolutions(), clients(), verbose=False)
        for n, strategy in ((1, "auto"), (2, "ddp_fork"))
    ]
    assert results[0] == results[1]


def test_reading_that_draws_has_the_clients_random_streams(
    monkeypatch: pytest.MonkeyPatch, joint: list[int]
) -> None:
    sizes = [40, 33, 64]
    together = scores_of(Perceptron(), clients(sizes, Augmented, batch_size=64))
    assert joint == [0, 1, 2]
    monkeypatch.setattr("fedlightning.engine.evaluation.obstacle", lambda *_: "not here")
    assert scores_of(Perceptron(), clients(sizes, Augmented, batch_size=64)) == together


def watched() -> FederatedModule:
    module = Perceptron()
    module.body.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (BatchStatistics, "running statistics"),
        (CountsBatches, "test_step of its own"),
        (watched, "hooks"),
    ],
)
def test_what_may_look_across_examples_is_asked_client_by_client(
    network: Any, reason: str, joint: list[int]
) -> None:
    module = network()
    assert len(scores_of(module, clients())) == len(SIZES)
    assert not joint
    asked = trainer()
    asked.strategy.connect(module)
    assert reason in str(obstacle(asked, module))


def test_hooks_around_batches_are_called_for_every_client(joint: list[int]) -> None:
    found = scores_of(Hooked(), clients())
    assert not joint
    assert all(scores["global/hooked"] == 1.0 for scores in found.values())


def test_a_network_that_draws_has_each_clients_random_stream(joint: list[int]) -> None:
    class Noisy(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    def network() -> FederatedModule:
        module = Perceptron()
        module.body.append(Noisy())
        return module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_evaluation, "doubt", lambda *_, **__: None)
        found = scores_of(network(), clients())
    assert not joint
    assert found == scores_of(network(), clients())


def test_labels_out_of_range_are_refused_as_ever() -> None:
    module = Perceptron()
    module.head = nn.Linear(24, 3)
    with pytest.raises(Exception, match=r"(?i)out of bounds|classes|labels"):
        scores_of(module, clients(check_data="off"))


def test_training_goes_on_as_it_was(joint: list[int]) -> None:
    def fitted(every: int) -> dict[str, Tensor]:
        module = Perceptron()
        runs = trainer(max_epochs=4, check_val_every_n_epoch=every, num_sanity_val_steps=0)
        runs.fit(module, clients(val_fraction=0.2))
        assert all(layer.training for layer in module.modules())
        return module.state_dict()

    often, never = fitted(1), fitted(100)
    assert joint
    assert all(torch.equal(often[key], never[key]) for key in often)


def test_a_test_has_the_bits_of_the_evaluation_inside_fit() -> None:
    federation = Federation(FedAvg(), cohort_size=2, seed=0)  # channels last, where that gains
    module = Convolutions()
    data = clients([64, 40, 50])

    class Last(pl.Callback):
        def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
            self.metrics = {k: v.item() for k, v in trainer.callback_metrics.items()}
            self.state = {k: v.clone() for k, v in module.state_dict().items()}

    last = Last()
    run = FederatedTrainer(
        federation=federation, max_epochs=2, callbacks=[last], num_sanity_val_steps=0, **QUIET
    )
    run.fit(module, data)
    fresh = Convolutions()
    fresh.load_state_dict({key: value.contiguous() for key, value in last.state.items()})
    again = FederatedTrainer(federation=federation, **QUIET)
    [metrics] = again.test(fresh, clients([64, 40, 50]), verbose=False)
    assert metrics["global/loss"] == last.metrics["global/loss"]
