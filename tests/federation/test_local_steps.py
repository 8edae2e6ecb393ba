"""`federation.local_steps`: as many optimizer steps for every client, however much data it has."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from fedlightning import Ditto, FedAvg, Federation, FedRep, PFedMe
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError
from tests.toys import CLASSES, data, examples, fit, net, same, state

SIZES = (3, 9, 30)  # 1, 3 and 8 batches of 4


class Steps(pl.Callback):
    def __init__(self):
        self.of = {}

    def on_client_end(self, trainer, module, update):
        self.of[update.client] = update.steps


def steps_of(algorithm=None, settings=None, **kwargs):
    seen = Steps()
    built = fit(
        net(), algorithm or FedAvg(), rounds=1, datamodule=data(sizes=SIZES), callbacks=[seen],
        federation=settings, **kwargs,
    )  # fmt: skip
    return seen.of, built


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 20])
def test_every_client_takes_as_many_steps(steps):
    assert steps_of(settings={"local_steps": steps})[0] == dict.fromkeys(range(3), steps)


def test_steps_are_optimizer_steps_where_gradients_are_accumulated():
    taken, _ = steps_of(settings={"local_steps": 5}, accumulate_grad_batches=3)
    assert taken == dict.fromkeys(range(3), 5)


def test_the_limit_of_batches_bounds_each_pass():
    taken, _ = steps_of(settings={"local_steps": 7}, limit_train_batches=2)
    assert taken == dict.fromkeys(range(3), 7)


@pytest.mark.parametrize("algorithm", [Ditto(), PFedMe(2.0, 2, 0.02)], ids=repr)
def test_methods_with_models_of_their_own_take_as_many(algorithm):
    assert steps_of(algorithm, {"local_steps": 4})[0] == dict.fromkeys(range(3), 4)


def test_one_pass_of_steps_gives_the_bits_of_one_epoch():
    whole, part = (
        fit(net(), FedAvg(), datamodule=data(sizes=(8, 8)), federation=settings)
        for settings in ({"local_epochs": 3}, {"local_steps": 6})
    )
    assert same(*(state(built.lightning_module) for built in (whole, part)))


class InOrder(ClientDatasets):
    def epoch_order(self, key, num_examples):
        return torch.arange(num_examples)


def test_the_last_pass_ends_early_by_hand():
    """Five steps on three batches: 0 1 2 0 1."""
    pair = examples(9, 0)
    batches = InOrder(train=[pair], test=[pair], num_classes=CLASSES, batch_size=4)
    built = fit(net(), FedAvg(), rounds=1, datamodule=batches, federation={"local_steps": 5})
    right = net()
    optimizer = torch.optim.SGD(right.parameters(), lr=0.1, momentum=right.momentum)
    for index in (0, 1, 2, 0, 1):
        x, y = (part[4 * index : 4 * index + 4] for part in pair)
        optimizer.zero_grad()
        F.cross_entropy(right(x), y).backward()
        optimizer.step()
    trained = state(built.lightning_module)
    for key, value in right.state_dict().items():
        assert torch.allclose(trained[key], value, rtol=1e-6, atol=1e-7), key


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"local_steps": 0}, "federation.local_steps must be"),
        ({"local_steps": 2.5}, "federation.local_steps must be"),
        ({"local_steps": 5, "local_epochs": 2}, "federation.local_epochs=2 both"),
        ({"local_steps": 5, "clients_per_kernel": 2}, "federation.clients_per_kernel=1"),
        ({"local_steps": 5, "algorithm": FedRep(2)}, "FedRep divides"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        Federation(**settings)
