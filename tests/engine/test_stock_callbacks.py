"""Lightning's own callbacks do in a federation what they do elsewhere, or are refused by name."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BackboneFinetuning, BatchSizeFinder, ModelPruning
from pytorch_lightning.tuner import Tuner
from torch import nn

from fedlightning import FedAvg, FederatedModule
from fedlightning.errors import ConfigError
from tests.toys import CLASSES, FEATURES, data, fit, net, same, state, trainer


class Merged(pl.Callback):
    """Keeps the model of every round."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_aggregate_end(self, trainer, pl_module):
        self.states.append(state(pl_module))


def constant(seed: int = 0):
    return net(seed, lr_milestones=())


def averaging(**settings):
    callbacks = pytest.importorskip("pytorch_lightning.callbacks.weight_averaging")
    return callbacks.EMAWeightAveraging(decay=0.75, **settings)


def test_a_moving_average_is_over_the_models_of_the_rounds():
    module, merged = constant(), Merged()
    fit(module, FedAvg(), rounds=3, callbacks=[averaging(), merged])
    for key, value in state(module).items():
        first, second, third = (round_[key] for round_ in merged.states)
        after_two = 0.75 * first + 0.25 * second
        torch.testing.assert_close(value, 0.75 * after_two + 0.25 * third)


def test_its_steps_are_rounds():
    module, merged = constant(), Merged()
    every_other = averaging(update_every_n_steps=2)  # rounds 0 and 2
    fit(module, FedAvg(), rounds=4, callbacks=[every_other, merged])
    for key, value in state(module).items():
        torch.testing.assert_close(
            value, 0.75 * merged.states[0][key] + 0.25 * merged.states[2][key]
        )


def test_a_moving_average_goes_on_after_a_resume(tmp_path):
    whole, resumed = constant(), constant(5)
    fit(whole, FedAvg(), rounds=4, callbacks=[averaging()])
    fit(constant(), FedAvg(), rounds=2, folder=tmp_path, callbacks=[averaging()])
    fit(resumed, FedAvg(), rounds=4, folder=tmp_path, ckpt="last", callbacks=[averaging()])
    assert same(state(resumed), state(whole))


class Backbone(FederatedModule):
    """A backbone that is thawed later, in a group of its own."""

    def __init__(self) -> None:
        super().__init__(lr=0.1, lr_milestones=())
        self.backbone = nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU())
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(self.backbone(x))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


def test_groups_that_a_callback_has_added_are_not_other_settings(tmp_path):
    def thaw():
        return BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 0.5)

    fit(net(0, Backbone), FedAvg(), rounds=2, folder=tmp_path, callbacks=[thaw()])
    built = fit(
        net(5, Backbone), FedAvg(), rounds=4, folder=tmp_path, ckpt="last", callbacks=[thaw()]
    )
    rates = [group["lr"] for group in built.optimizers[0].param_groups]
    assert rates == pytest.approx([0.1, 0.1 * 0.1 * 0.5 * 0.5])  # halved in rounds 2 and 3


class Prunes(Backbone):
    def configure_callbacks(self):
        return ModelPruning("l1_unstructured", amount=0.5)


def test_pruning_is_refused_by_name_wherever_it_comes_from():
    message = "ModelPruning has no federated meaning: it renames the keys of the state"
    with pytest.raises(ConfigError, match=message):
        trainer(FedAvg(), callbacks=[ModelPruning("l1_unstructured", amount=0.5)])
    late = trainer(FedAvg())
    late.callbacks.append(BatchSizeFinder())
    with pytest.raises(ConfigError, match=r"^BatchSizeFinder has no federated meaning"):
        late.fit(net(), datamodule=data())
    with pytest.raises(ConfigError, match=message):
        fit(Prunes(), FedAvg())


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("lr_find", r"^Tuner\.lr_find \(LearningRateFinder\) has no federated meaning"),
        ("scale_batch_size", r"^Tuner\.scale_batch_size \(BatchSizeFinder\) has no federated mean"),
    ],
)
def test_a_tuner_is_refused_and_leaves_the_trainer_as_it_was(tune, message):
    built, module = trainer(FedAvg(), rounds=1), net()
    before = state(module)
    with pytest.raises(ConfigError, match=message):
        getattr(Tuner(built), tune)(module, datamodule=data())
    if tune == "scale_batch_size":
        with pytest.raises(ConfigError, match=message):
            Tuner(built).scale_batch_size(module, datamodule=data(), method="validate")
    assert same(state(module), before)
    built.fit(module, datamodule=data())
    assert not same(state(module), before)
