"""Forgetting: accuracy on a client's data right after its turn, minus that of the model now."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlightning import FedAvg, FederatedModule, FedPer
from fedlightning.callbacks import ForgettingCallback
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError
from fedlightning.federation import Cyclic
from fedlightning.federation.sampling import FixedCohorts
from fedlightning.federation.uplink import UplinkStage
from tests.engine.test_resume import Stop, StopAt, checkpoint
from tests.toys import Net, data, fit, loop_of, net, same, state


class LastSeen(FederatedModule):
    """Predicts the class of the last client that trained it: one bias a class, moved at will."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__(lr=1.0, momentum=0.0, lr_milestones=())
        self.head = torch.nn.Linear(1, classes)
        self.body = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (y,) = batch[1].unique()
        target = torch.nn.functional.one_hot(y, self.head.out_features).float()
        return 0.5 * (self.head.bias - target).square().sum()  # one step of rate 1 leads there


def one_class_each(classes: int = 3) -> ClientDatasets:
    pairs = [(torch.zeros(2, 1), torch.full((2,), k)) for k in range(classes)]
    return ClientDatasets(train=pairs, test=pairs, num_classes=classes, batch_size=2)


def rows_of(folder: Any) -> list[dict[str, str]]:
    with next(folder.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def test_in_a_cycle_the_model_forgets_all_but_the_last_client(tmp_path):
    callback = ForgettingCallback()
    fit(LastSeen(), FedAvg(), 4, datamodule=one_class_each(), callbacks=[callback],
        folder=tmp_path, federation={"schedule": Cyclic("fixed")})  # fmt: skip
    assert callback.after == {0: 1.0, 1: 1.0, 2: 1.0}
    assert callback.forgetting == {1: 1.0, 2: 1.0}  # client 0 has had the last turn
    rows = rows_of(tmp_path)
    assert [row["forgetting/mean"] for row in rows] == ["", "1.0", "1.0", "1.0"]
    assert [row["forgetting/max"] for row in rows] == ["", "1.0", "1.0", "1.0"]
    (picture,) = tmp_path.rglob("forgetting.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_in_rounds_it_is_what_merging_and_the_rounds_without_a_client_cost():
    callback = ForgettingCallback()
    sampler = FixedCohorts([[0, 1], [1, 2]])
    fit(LastSeen(), FedAvg(), 2, cohort=2, datamodule=one_class_each(), callbacks=[callback],
        federation={"sampler": sampler})  # fmt: skip
    # the mean of two biases is (0, .5, .5) at the end, and argmax takes the first of equals
    assert callback.forgetting == {0: 1.0, 1: 0.0, 2: 1.0}


def test_parts_that_a_client_keeps_are_its_own():
    callback = ForgettingCallback()
    fit(LastSeen(), FedPer(), 3, datamodule=one_class_each(), callbacks=[callback])
    assert callback.forgetting == {0: 0.0, 1: 0.0, 2: 0.0}


def test_training_does_not_notice():
    found = []
    for callbacks in ([], [ForgettingCallback(every_n_rounds=2)]):
        module = net(norm=True, dropout=0.3)
        fit(module, rounds=3, cohort=2, callbacks=callbacks, datamodule=data((8, 6, 7)),
            federation={"optimizer_state": "keep", "buffers": "local"})  # fmt: skip
        found.append(state(module))
    assert same(*found)


def test_a_resumed_run_remembers_and_two_workers_see_what_one_does(tmp_path):
    settings = {"rounds": 5, "cohort": 2, "datamodule": data((8, 6, 7))}
    whole, half, both = (ForgettingCallback() for _ in range(3))
    fit(net(), callbacks=[whole], folder=tmp_path / "a", **settings)
    with pytest.raises(Stop):
        fit(net(), callbacks=[half, StopAt("on_train_epoch_start", 3)], folder=tmp_path / "b",
            **settings)  # fmt: skip
    resumed = ForgettingCallback()
    fit(net(5), callbacks=[resumed], folder=tmp_path / "b",
        ckpt=checkpoint(tmp_path / "b", "last.ckpt"), **settings)  # fmt: skip
    assert resumed.state_dict() == whole.state_dict()
    fit(net(), callbacks=[both], folder=tmp_path / "c", accelerator="cpu", devices=2,
        strategy="ddp_fork", **settings)  # fmt: skip
    names = ("forgetting/mean", "forgetting/max")
    columns = [[[row[n] for n in names] for row in rows_of(tmp_path / f)] for f in "abc"]
    assert columns[0] == columns[1] == columns[2]


class Unlucky(UplinkStage):
    """Fails with client 1, when it has already been measured."""

    def send(self, update: Any, context: Any) -> Any:
        if update.client == 1:
            raise ValueError("bad luck")
        return update


def test_a_turn_that_fails_does_not_count():
    callback = ForgettingCallback()
    with pytest.warns(UserWarning, match=r"client 1, round 1: .*\(skipped\)"):
        fit(
            net(), rounds=3, cohort=2, callbacks=[callback], datamodule=data((8, 6, 7)),
            federation={"sampler": FixedCohorts([[0, 2], [1, 2], [0, 2]]), "uplink": [Unlucky()],
                        "on_client_failure": "skip"},
        )  # fmt: skip
    assert set(callback.after) == {0, 2}


def test_a_module_that_measures_nothing_is_refused():
    class Silent(Net):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            pass

    with pytest.raises(ConfigError, match=r"logs nothing on the split 'test' .* log a metric"):
        fit(net(module=Silent), callbacks=[ForgettingCallback()])


def test_very_many_clients_are_measured_by_a_sample():
    callback = ForgettingCallback()
    clients = data((8, 6, 7, 5), eval_clients=2)
    built = fit(net(), rounds=2, callbacks=[callback], datamodule=clients)
    assert set(callback.after) == set(loop_of(built).data.evaluated_clients)
    assert len(callback.after) == 2
