"""Own models that follow from a client's examples where it is evaluated: one step, a solve."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from fedlightning import FedAvg, FedBABU, FedPer, PersonalizationCallback, PFedMe
from fedlightning.algorithms import Algorithm, OneStep
from fedlightning.core.proximal import proximal_point
from fedlightning.errors import ConfigError
from fedlightning.personalization.models import client_model
from tests.algorithms.by_hand import clients
from tests.toys import Net, data, fit, loop_of, net, same, state

ALPHA, SIZES = 0.5, (8, 6, 7, 6)
STEP = Algorithm(local=[OneStep(ALPHA)])


def whole(split_of, client, split="train"):
    return [torch.cat(parts) for parts in zip(*split_of.batches(client, split), strict=True)]


def slopes(module, weights, x, y):
    """Return the gradient of the mean cross-entropy, without dropout."""
    keys = [key for key, _ in module.named_parameters()]
    leaves = {key: weights[key].clone().requires_grad_() for key in keys}
    loss = F.cross_entropy(functional_call(module.eval(), {**weights, **leaves}, (x,)), y)
    return dict(zip(keys, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def test_a_client_starts_from_one_step_on_all_of_its_examples():
    some, module = data(SIZES), net(dropout=0.5, norm=True)
    callback = PersonalizationCallback(epochs=0, part="full")
    built = fit(module, STEP, rounds=1, cohort=1, datamodule=some, callbacks=[callback])
    weights = state(module)
    for result in callback.results:
        g = slopes(module, weights, *whole(some, result.client))
        own = {**weights, **{key: weights[key] - ALPHA * slope for key, slope in g.items()}}
        x, y = whole(some, result.client, "test")
        loss = float(F.cross_entropy(functional_call(module, own, (x,)), y))
        assert result.before["loss"] == pytest.approx(loss, rel=1e-5)
        assert result.after["loss"] == result.before["loss"]
    assert same(state(module), weights)
    assert float(built.callback_metrics["global/loss"]) != pytest.approx(
        sum(r.before["loss"] for r in callback.results) / 4, rel=1e-3
    )


def test_training_and_the_global_model_are_fedavgs():
    found = []
    for algorithm in (FedAvg(), STEP):
        callback = PersonalizationCallback(epochs=1, part="full", every_n_rounds=1)
        module = net(dropout=0.5)
        built = fit(module, algorithm, rounds=3, callbacks=[callback])
        found.append({**state(module), "acc": built.callback_metrics["global/acc"],
                      "loss": built.callback_metrics["global/loss"]})  # fmt: skip
    assert same(*found)


def test_fine_tuning_starts_from_it():
    some, module = data(SIZES, batch_size=16), net()
    callback = PersonalizationCallback(epochs=1, part="full", lr=0.25, momentum=0.0, curve=True)
    fit(module, STEP, rounds=1, datamodule=some, callbacks=[callback])
    for result in callback.results:
        w = state(module)
        for size in (ALPHA, 0.25):
            g = slopes(module, w, *whole(some, result.client))
            w = {**w, **{key: w[key] - size * slope for key, slope in g.items()}}
        x, y = whole(some, result.client, "test")
        loss = float(F.cross_entropy(functional_call(module, w, (x,)), y))
        assert result.after["loss"] == pytest.approx(loss, rel=1e-5)


def test_only_what_is_trained_moves_and_what_is_kept_is_stepped_from():
    some = data(SIZES)
    for algorithm, moving in ((FedBABU(), "body"), (FedPer(), "")):
        module, callback = net(), PersonalizationCallback(epochs=0)
        built = fit(module, algorithm + STEP, rounds=2, datamodule=some, callbacks=[callback])
        for client in range(4):
            start = {**state(module), **loop_of(built).personal_model(client)}
            g = slopes(module, start, *whole(some, client))
            with callback.personalizer(built).at_work() as personalizer:
                personalizer.client(client)
                now = state(module)
            for key, value in start.items():
                step = ALPHA * g[key] if key.startswith(moving) else 0.0
                torch.testing.assert_close(now[key], value - step, rtol=1e-5, atol=1e-6)


def test_files_hold_it_also_of_clients_without_examples(tmp_path):
    module, some = net(), data((8, 6, 7, 5), batch_size=3)
    callback = PersonalizationCallback(epochs=0, part="head")
    built = fit(module, STEP, datamodule=some, folder=tmp_path, callbacks=[callback])
    for client in range(4):
        own = client_model(built.log_dir, client, net(seed=5)).eval()
        x, y = whole(some, client, "test")
        with torch.no_grad():
            loss = float(F.cross_entropy(own(x), y))
        assert loss == pytest.approx(callback.results[client].after["loss"], rel=1e-5)


def test_two_workers_fit_the_same_models(tmp_path):
    found = []
    for workers in ({}, {"accelerator": "cpu", "devices": 2, "strategy": "ddp_fork"}):
        folder = tmp_path / str(len(workers))
        callback = PersonalizationCallback(epochs=0)
        fit(net(dropout=0.5), STEP, folder=folder, callbacks=[callback], **workers)
        (table,) = folder.rglob("clients.csv")
        found.append(table.read_text())
    assert found[0] == found[1]


def test_a_solved_model_has_a_small_gradient_and_follows_the_newest_global_model():
    """Of a head alone, which is a smooth problem."""
    some, module = clients(), net().double()
    algorithm = PFedMe(2.0, 3, tolerance=1e-6, personal_solve=True, train="head", share="head")
    callback = PersonalizationCallback(epochs=0)
    built = fit(module, algorithm, rounds=2, cohort=2, datamodule=some, callbacks=[callback])
    w = state(module)
    assert len(loop_of(built).client_store) == 0
    for client in range(4):
        with callback.personalizer(built).at_work() as personalizer:
            personalizer.client(client)
            own = state(module)
        g = slopes(module, own, *whole(some, client))
        left = [g[k] + 2.0 * (own[k] - w[k]) for k in g if "head" in k]
        assert float(torch.stack([each.norm() for each in left]).norm()) < 1.001e-6
        assert same({k: v for k, v in own.items() if "body" in k},
                    {k: v for k, v in w.items() if "body" in k})  # fmt: skip
        assert not same(own, w)


def test_a_proximal_point_that_is_not_reached_is_the_best_one_seen():
    """|t| has slopes of norm 1 nearby: no step gets below, and the start, 0.25 away, is worse."""
    found = proximal_point(
        lambda t: {"t": torch.sign(t["t"])}, {"t": torch.tensor([0.25])}, 1.0, 0.1, max_steps=8
    )
    slope = torch.sign(found["t"]) + (found["t"] - 0.25)
    assert float(slope.abs()) <= 1.0
    assert torch.isfinite(found["t"]).all()


def test_metrics_and_attributes_of_the_training_step_are_left_alone():
    class Counts(Net):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.steps = 0

        def training_step(self, batch, batch_idx):
            self.steps += 1
            self.log("train/steps", float(self.steps))
            return super().training_step(batch, batch_idx)

    found = []
    for algorithm in (FedAvg(), STEP):
        module = net(module=Counts)
        callback = PersonalizationCallback(epochs=0)
        built = fit(module, algorithm, callbacks=[callback])
        found.append((module.steps, float(built.callback_metrics["train/steps"])))
        assert all(p.requires_grad for p in module.parameters())
    assert found[0] == found[1]


def test_a_module_that_optimizes_by_hand_is_refused_before_the_first_round():
    class ByHand(Net):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.automatic_optimization = False

    with pytest.raises(ConfigError, match=r"OneStep asks for gradients.* ByHand optimizes by hand"):
        fit(net(module=ByHand), STEP, callbacks=[PersonalizationCallback(epochs=0)])
