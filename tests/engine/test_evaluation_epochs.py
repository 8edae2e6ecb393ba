"""The evaluation epochs that a module lives through: whose examples, which hooks, what is left."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from fedlightning import FedAvg, PersonalizationCallback
from fedlightning.datamodules import ClientDatasets
from tests.toys import CLASSES, Net, data, examples, fit, net, trainer


class Collecting(Net):
    """Collects what its steps see, and logs something of all of it at the end of an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.life: list[str] = []

    def note(self, what: str) -> None:
        stage = self.trainer.state.stage
        self.life.append(f"{what} {stage.value if stage is not None else None}")

    def validation_step(self, batch, batch_idx):
        self.seen.append(batch[0])
        self.log("val_first", batch[0][0, 0])

    def test_step(self, batch, batch_idx):
        self.seen.append(batch[0])
        self.log("test_first", batch[0][0, 0])

    def on_validation_epoch_end(self):
        self._score("val")

    def on_test_epoch_end(self):
        self._score("test")

    def _score(self, name: str) -> None:
        seen = torch.cat(self.seen)
        self.log(f"{name}_median", seen[:, 0].median())
        self.log(f"{name}_count", float(len(seen)))
        self.seen.clear()


def inputs(clients, which, split):
    return torch.cat([x for c in which for x, _ in clients.batches(c, split)])


def shown(built):
    return {name: float(value) for name, value in built.callback_metrics.items()}


def test_the_end_of_an_epoch_sees_all_clients_and_each_of_them_alone():
    clients = data(val_fraction=0.25)
    personal = PersonalizationCallback(epochs=0, nearest_mean=False)
    built = fit(net(module=Collecting), FedAvg(), datamodule=clients, callbacks=[personal])
    metrics = shown(built)
    for split, name in (("val", "val"), ("test", "test")):
        pooled = inputs(clients, range(4), split)
        assert metrics[f"{name}_count"] == len(pooled)
        assert metrics[f"{name}_median"] == pytest.approx(float(pooled[:, 0].median()))
    for client, result in enumerate(personal.results):
        own = inputs(clients, [client], "test")
        assert result.after["count"] == result.before["count"] == len(own)
        assert result.after["median"] == pytest.approx(float(own[:, 0].median()))


def test_what_batches_log_is_a_mean_over_clients_beside_it():
    clients = data(sizes=(8, 6, 7))
    built = fit(net(module=Collecting), FedAvg(), datamodule=clients)
    # one batch of four test examples each: the first of each
    firsts = [float(inputs(clients, [client], "test")[0, 0]) for client in range(3)]
    assert shown(built)["test_first"] == pytest.approx(sum(firsts) / 3)


def test_every_view_has_an_epoch_of_its_own():
    clients = data(held_out_clients=1, seed=0)
    built = fit(net(module=Collecting), FedAvg(), datamodule=clients)
    metrics = shown(built)
    held = sorted({*range(4)} - {*clients.training_clients})
    for prefix, which in (("", clients.training_clients), ("held_out/", held)):
        own = inputs(clients, which, "test")
        assert metrics[f"{prefix}test_count"] == len(own)
        assert metrics[f"{prefix}test_median"] == pytest.approx(float(own[:, 0].median()))


class Living(Collecting):
    """Writes down the hooks it lives through and what the trainer says then."""


for _stage in ("validation", "test"):
    for _moment in ("start", "epoch_start", "end"):

        def _hook(self, name=f"{_stage} {_moment}"):
            self.note(name)

        setattr(Living, f"on_{_stage}_{_moment}", _hook)


def lives(built):
    return built.lightning_module.life


class KeepsLife(pl.Callback):
    """Keeps the list that a module writes down, which is put back after each evaluation."""

    def __init__(self, module):
        self.life: list[str] = []
        object.__setattr__(module, "life", _Shared(self.life))


class _Shared:
    """Not a list: nothing puts its contents back."""

    def __init__(self, entries):
        self.append = entries.append


def test_each_purpose_is_told_apart_in_fit():
    module = net(module=Living)
    kept = KeepsLife(module)
    fit(module, FedAvg(), rounds=1, datamodule=data(val_fraction=0.25), callbacks=[kept])
    epoch = ["start", "epoch_start", "end"]
    assert kept.life == [
        *(f"validation {moment} validate" for moment in epoch),
        *(f"test {moment} test" for moment in epoch),
    ]


def test_no_validation_hook_fires_without_validation_data():
    module = net(module=Living)
    kept = KeepsLife(module)
    fit(module, FedAvg(), rounds=1, callbacks=[kept])
    assert {line.split()[0] for line in kept.life} == {"test"}


def test_evaluations_in_fit_leave_nothing_in_the_module():
    module = net(module=Collecting)
    module.on_validation_epoch_end = module.on_test_epoch_end = lambda: None
    built = fit(module, FedAvg(), datamodule=data(val_fraction=0.25))
    assert built.lightning_module.seen == []


class Appending(Net):
    """Collects inputs, and has no hook."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def test_step(self, batch, batch_idx):
        self.seen.append(batch[0])
        self.log("test_batches", float(len(self.seen)))


def test_each_client_starts_with_an_empty_list_and_a_test_leaves_all_of_them():
    module, clients = net(module=Appending), data(sizes=(8, 6))
    built = trainer(FedAvg())
    built.test(module, datamodule=clients, verbose=False)
    assert shown(built)["test_batches"] == 1
    assert torch.equal(torch.cat(module.seen), inputs(clients, range(2), "test"))


def test_a_test_leaves_what_it_has_collected_in_the_module():
    module, clients = net(module=Collecting), data()
    module.on_test_epoch_end = lambda: None
    trainer(FedAvg()).test(module, datamodule=clients, verbose=False)
    assert torch.equal(torch.cat(module.seen), inputs(clients, range(4), "test"))


def test_callbacks_see_clients_as_batches_of_one_epoch():
    class Watching(pl.Callback):
        def __init__(self):
            self.life = []

        def on_validation_start(self, trainer, module):
            self.life.append("start")

        def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, *_):
            self.life.append((batch.client, batch.split, sorted(outputs)))

        def on_validation_epoch_end(self, trainer, module):
            self.life.append("end")

    watching = Watching()
    fit(
        net(module=Collecting), FedAvg(), rounds=1, callbacks=[watching],
        datamodule=data(sizes=(8, 8), val_fraction=0.25),
    )  # fmt: skip
    clients = [
        (client, split, [f"{split}_first"]) for client in (0, 1) for split in ("val", "test")
    ]
    assert watching.life == ["start", *clients, "end"]


def test_the_sanity_check_leaves_no_trace():
    class Best(Net):
        def __init__(self):
            super().__init__()
            self.rounds = 0

        def validation_step(self, batch, batch_idx):
            pass

        def on_validation_epoch_end(self):
            self.rounds += 1
            self.log("val_rounds", float(self.rounds))

    built = fit(
        net(module=Best), FedAvg(), rounds=3, datamodule=data(val_fraction=0.25),
        num_sanity_val_steps=2,
    )  # fmt: skip
    assert shown(built)["val_rounds"] == 3


def test_central_validation_remembers_its_rounds_and_nothing_else_does():
    class Memory(Net):
        def __init__(self):
            super().__init__()
            self.rounds = 0

        def training_step(self, batch, batch_idx):
            assert self.rounds == 0
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            pass

        def on_validation_epoch_end(self):
            self.rounds += 1
            self.log("val_rounds", float(self.rounds))

    built = trainer(FedAvg(), rounds=3)
    central = DataLoader(TensorDataset(*examples(8, 5)), batch_size=4)
    built.fit(net(module=Memory), val_dataloaders=central, datamodule=data())
    assert shown(built)["val_rounds"] == 3
    assert built.lightning_module.rounds == 0


@pytest.mark.filterwarnings("ignore:1 of 2 clients have no test examples")
def test_metrics_without_data_are_not_made_up():
    clients = ClientDatasets(
        train=[examples(8, 0), examples(8, 1)],
        test=[examples(0, 2), examples(5, 3)],
        num_classes=CLASSES,
        batch_size=4,
    )
    built = fit(net(module=Collecting), FedAvg(), rounds=1, datamodule=clients)
    assert shown(built)["test_count"] == 5
