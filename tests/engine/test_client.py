"""Local training does what a Lightning user expects, on the short path and on Lightning's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.optimization.automatic import Closure
from pytorch_lightning.utilities.rank_zero import WarningCache
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from fedlightning import FedAvg, FedBABU
from fedlightning.engine._lightning.stock_step import LightningStep
from fedlightning.engine.steps import DirectStep, needs_lightning_step
from fedlightning.errors import ConfigError
from tests.toys import Net, data, fit, loop_of, net, same, state


class Stock(Net):
    """The same module with a hook that forces Lightning's own path."""

    def on_before_optimizer_step(self, optimizer):
        pass


SETTINGS = [
    {},
    {"gradient_clip_val": 0.1},
    {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    {"accumulate_grad_batches": 2},
    {"precision": "bf16-mixed"},
    {"precision": "64-true"},
    {"precision": "bf16-true"},
    {"limit_train_batches": 1},
    {"limit_train_batches": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_short_and_stock_path_give_the_same_bits(settings):
    results = []
    for module_class, step in ((Net, DirectStep), (Stock, LightningStep)):
        module = net(module=module_class, dropout=0.3)
        built = fit(module, FedAvg(), rounds=2, federation={"local_epochs": 2}, **settings)
        chosen = loop_of(built)._executor._clients._training._epochs._step
        if settings.get("precision") not in ("64-true", "bf16-true"):  # these wrap the step
            assert isinstance(chosen, step)
        results.append(state(module))
    assert same(*results)


def test_settings_have_an_effect():
    plain = net()
    fit(plain, FedAvg())
    for settings in SETTINGS[1:]:
        other = net()
        fit(other, FedAvg(), **settings)
        assert not same(state(plain), state(other)), settings


class Manual(Net):
    def __init__(self) -> None:
        super().__init__(lr_milestones=())
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def test_manual_optimization_equals_automatic():
    manual, automatic = net(module=Manual), net(lr_milestones=())
    built = fit(manual, FedAvg(), rounds=2)
    fit(automatic, FedAvg(), rounds=2)
    assert same(state(manual), state(automatic))
    assert built.global_step == 8  # client updates, not optimizer steps


def test_an_overridden_optimizer_hook_is_called_for_every_local_step():
    class Counting(Net):
        calls = 0

        def on_before_optimizer_step(self, optimizer):
            type(self).calls += 1

    fit(net(module=Counting), FedAvg(), rounds=1, datamodule=data((8, 5)))
    assert Counting.calls == 4


def test_a_callback_with_an_optimizer_hook_is_called_for_every_local_step():
    class Watch(pl.Callback):
        calls = 0

        def on_before_zero_grad(self, *_):
            type(self).calls += 1

    fit(net(), FedAvg(), rounds=1, datamodule=data((8, 5)), callbacks=[Watch()])
    assert Watch.calls == 4


def test_a_profiler_sees_local_steps():
    built = fit(net(), FedAvg(), profiler="simple")
    assert needs_lightning_step(built, built.lightning_module) == "a profiler"
    assert any("training_step" in action for action in built.profiler.recorded_durations)


@pytest.mark.filterwarnings("ignore:You have overridden")  # Lightning says which one it uses
def test_batch_transfer_hooks_of_the_module_are_honoured():
    class Doubling(Net):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y = batch
            return 0 * x, y

    module = net(module=Doubling)
    before = module.body[0].weight.clone()
    fit(module, FedAvg(), rounds=1)
    assert torch.equal(module.body[0].weight, before)  # inputs of zero: no gradient


def test_a_training_step_without_batch_index_and_with_a_dict_is_fine():
    class Short(Net):
        def training_step(self, batch):
            return {"loss": super().training_step(batch, 0)}

    short, usual = net(module=Short), net()
    fit(short, FedAvg())
    fit(usual, FedAvg())
    assert same(state(short), state(usual))


def test_a_training_step_that_returns_none_skips_the_batch_and_says_so_once(monkeypatch):
    class Skipping(Net):
        def training_step(self, batch, batch_idx):
            return None

    monkeypatch.setattr(Closure, "warning_cache", WarningCache())
    module = net(module=Skipping, lr_milestones=())
    before = state(module)
    with pytest.warns(UserWarning, match=r"^`training_step` returned `None`, so nothing") as seen:
        fit(module, FedAvg())
    assert sum("returned `None`" in str(warning.message) for warning in seen) == 1
    assert same(state(module), before)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"los": 1.0}, r"returned a dict without 'loss' \('los'\); return the loss"),
        (0.5, r"returned 0\.5 of float; return the loss, a tensor"),
        ({"loss": 0.5}, r"returned 0\.5 of float"),
    ],
)
def test_a_training_step_without_a_loss_ends_the_run_at_once(output, message):
    class Lossless(Net):
        def training_step(self, batch, batch_idx):
            return output

    with pytest.raises(ConfigError, match=f"^Lossless.training_step {message}"):
        fit(net(module=Lossless), FedAvg(), federation={"on_client_failure": "skip"})


def test_on_train_batch_start_can_end_the_local_epoch():
    class Impatient(Net):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 1 else None

    impatient, limited = net(module=Impatient), net()
    fit(impatient, FedAvg(), datamodule=data((8, 8)))
    fit(limited, FedAvg(), datamodule=data((8, 8)), limit_train_batches=1)
    assert same(state(impatient), state(limited))


def test_torchmetrics_objects_are_computed_per_client_and_reset():
    class WithMetric(Net):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = MulticlassAccuracy(3, average="micro")

        def training_step(self, batch, batch_idx):
            x, y = batch
            logits = self(x)
            self.accuracy(logits, y)
            self.log_dict({"acc": self.accuracy, "loss": F.cross_entropy(logits, y)})
            return F.cross_entropy(logits, y)

    built = fit(net(module=WithMetric), FedAvg(), rounds=1)
    assert 0 <= float(built.callback_metrics["acc"]) <= 1
    assert built.lightning_module.accuracy.update_count == 0


def test_extreme_and_summed_values_reduce_as_asked():
    class Extremes(Net):
        def training_step(self, batch, batch_idx):
            for name in ("max", "min", "sum"):
                self.log(name, float(batch_idx), reduce_fx=name)
            return super().training_step(batch, batch_idx)

    metrics = fit(net(module=Extremes), FedAvg(), rounds=1, datamodule=data((12,))).callback_metrics
    assert [float(metrics[name]) for name in ("max", "min", "sum")] == [2.0, 0.0, 3.0]


class Scheduled(Net):
    """One scheduler that counts rounds, or one that counts local steps."""

    def __init__(self, interval: str, seen: Callable[[float], None]) -> None:
        super().__init__()
        self.interval, self.note = interval, seen

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]

    def training_step(self, batch, batch_idx):
        self.note(self.optimizers().param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("interval", "rates"),
    [("epoch", [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]), ("step", [1.0, 0.5] * 4)],
)
def test_schedulers_count_rounds_or_local_steps_of_each_client(interval, rates):
    seen: list[float] = []
    module = net(module=Scheduled, interval=interval, seen=seen.append)
    fit(module, FedAvg(), rounds=2, datamodule=data((8, 8)))
    assert seen == rates


def test_the_default_schedule_drops_at_half_and_three_quarters_of_the_rounds():
    rates: list[float] = []

    class Seen(Net):
        def on_train_start(self):
            rates.append(self.optimizers().param_groups[0]["lr"])

    fit(net(module=Seen), FedBABU(), rounds=8, cohort=1)
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)


@pytest.mark.filterwarnings("ignore:.* selects by test data")  # which is not the point here
def test_plateau_schedulers_watch_a_metric_of_the_round():
    class Plateau(Net):
        def training_step(self, batch, batch_idx):
            return 0 * super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": "global/loss"},
            }

    built = fit(net(module=Plateau), FedAvg(), rounds=3)
    assert built.optimizers[0].param_groups[0]["lr"] == 0.25


def test_lbfgs_gets_its_closure():
    class Second(Net):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1)

    built = fit(net(module=Second), FedAvg())
    assert "evaluates the loss itself" in needs_lightning_step(built, built.lightning_module)
