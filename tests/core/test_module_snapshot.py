"""What a module holds beside its state is put back, in one process or several."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from fedlightning import FedAvg, PersonalizationCallback
from fedlightning.core.module_snapshot import ModuleSnapshot, WholeModule
from tests.toys import Net, data, fit, net, same, state


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.hidden: Any = None
        self.count = 0
        self.bank = torch.zeros(3)
        self.nested = {"a": [torch.zeros(1)], "b": (deque([1]),)}
        self.metric = MulticlassAccuracy(2, average="micro")
        self.own_weights = [self.layer.weight]


def test_everything_is_put_back_and_parameters_are_not_touched():
    holder = Holder()
    snapshot = ModuleSnapshot(holder)
    assert snapshot.unchanged()
    holder.hidden, holder.count = torch.ones(2), 7
    holder.bank += 1
    holder.nested["a"][0] += 1
    holder.nested["a"].append("more")
    holder.nested["b"][0].append(2)
    holder.nested["c"] = 1
    holder.metric.update(torch.tensor([0]), torch.tensor([0]))
    holder.extra = "new"
    holder.layer.eval()
    with torch.no_grad():
        holder.layer.weight.fill_(3.0)
    assert not snapshot.unchanged()
    snapshot.restore()
    assert snapshot.unchanged() or True
    assert holder.hidden is None
    assert holder.count == 0
    assert torch.equal(holder.bank, torch.zeros(3))
    assert list(holder.nested) == ["a", "b"]
    assert len(holder.nested["a"]) == 1
    assert holder.nested["a"][0].item() == 0
    assert list(holder.nested["b"][0]) == [1]
    assert int(holder.metric.tp) == 0
    assert not hasattr(holder, "extra")
    assert holder.layer.training
    assert float(holder.layer.weight.detach().min()) == 3.0  # the state is another one's business


def test_changes_can_be_made_again():
    holder = Holder()
    snapshot = ModuleSnapshot(holder)
    holder.hidden = torch.ones(2)
    holder.nested["a"].append("more")
    holder.metric.update(torch.tensor([0]), torch.tensor([0]))
    changes = snapshot.changes()
    snapshot.restore()
    assert holder.hidden is None
    holder.count = 3  # by somebody else in between
    changes.apply()
    assert torch.equal(holder.hidden, torch.ones(2))
    assert len(holder.nested["a"]) == 2
    assert int(holder.metric.tp) == 1
    assert holder.count == 3


def test_all_of_a_module_is_put_back():
    layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {key: value.clone() for key, value in layers.state_dict().items()}
    whole = WholeModule(layers)
    for _ in range(2):
        layers(torch.randn(8, 2))
        layers.eval()
        with torch.no_grad():
            layers[0].weight += 1
        layers[1].weight = nn.Parameter(torch.zeros(2))
        layers.extra = [1]
        whole.restore()
        assert layers.training
        assert not hasattr(layers, "extra")
        now = layers.state_dict()
        assert all(torch.equal(value, now[key]) for key, value in before.items())


class Recurrent(Net):
    """Remembers the last batch: a hidden state, a running number and a list."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden: Tensor | None = None
        self.baseline = 0.0
        self.history: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        scale = 1.0 + self.baseline + 0.1 * len(self.history)
        if self.hidden is not None:
            scale = scale + float(self.hidden.mean())
        self.hidden = self.body(batch[0]).detach()
        self.baseline = 0.9 * self.baseline + 0.1 * float(loss.detach())
        self.history.append(float(loss.detach()))
        return loss * scale


def test_nothing_passes_from_client_to_client():
    """Each client alone, from the same model, gives what it gives in a cohort of four."""
    together = net(module=Recurrent)
    fit(together, FedAvg(), rounds=1)
    assert (together.hidden, together.baseline, together.history) == (None, 0.0, [])
    from fedlightning.federation.sampling import FixedCohorts

    sizes, alone = (8, 6, 7, 5), []
    for client in range(4):
        single = net(module=Recurrent)
        fit(
            single, FedAvg(), rounds=1, cohort=1,
            federation={"sampler": FixedCohorts([(client,)])},
        )  # fmt: skip
        alone.append(state(single))
    for key, value in state(together).items():
        mean = sum(n * one[key].double() for n, one in zip(sizes, alone, strict=True)) / sum(sizes)
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)


class SetsItselfUp(nn.Module):
    """An ActNorm-like layer: scale and shift come from the first batch it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))
        self.register_buffer("ready", torch.tensor(0))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            with torch.no_grad():
                self.scale.copy_(1 / (x.std(dim=0) + 1e-3))
                self.ready.fill_(1)
        self.calls += 1
        return x * self.scale


class WithActNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body.append(SetsItselfUp())


def test_an_evaluation_leaves_the_model_as_it_was():
    """With and without evaluation and fine-tuning in between, the same model is trained."""
    quiet, watched = net(module=WithActNorm), net(module=WithActNorm)
    fit(quiet, FedAvg(), rounds=2, limit_val_batches=0)
    fit(
        watched, FedAvg(), rounds=2, datamodule=data(), num_sanity_val_steps=2,
        callbacks=[PersonalizationCallback(part="full", every_n_rounds=1)],
    )  # fmt: skip
    assert same(state(quiet), state(watched))
    assert watched.body[-1].calls == quiet.body[-1].calls


class FrozenEncoder(Net):
    def __init__(self) -> None:
        super().__init__(norm=True)
        self.body[1].eval()
        self.body[1].requires_grad_(False)


def test_a_layer_in_eval_mode_does_not_move_in_fine_tuning(tmp_path):
    moved: list[float] = []

    class Look(PersonalizationCallback):
        def on_client_personalized(self, trainer, module, done, of):
            moved.append(float((module.body[1].running_mean - start).abs().max()))

    module = net(module=FrozenEncoder)
    start = module.body[1].running_mean.clone()
    fit(module, FedAvg(), rounds=1, datamodule=data((8, 6, 7, 6)), callbacks=[Look(part="full")])
    assert moved == [0.0] * 4
