"""Clients trained at once come out as clients trained one by one, up to rounding."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import nn

from fedlightning import Algorithm, FedAvg, FedBABU, FederatedModule, FedPer
from fedlightning.datamodules import ClientDatasets
from fedlightning.engine.grouped.training import unsupported_reason
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation import Buffered, Cyclic
from fedlightning.federation.sampling import FixedCohorts
from fedlightning.models import MLP, Conv4
from tests.toys import Net, data, examples, fit, loop_of, net, same, state, trainer

RAGGED = (12, 5, 9, 12, 1)  # batches of 4: last ones of 1, and clients who are done early


class LeNet(FederatedModule):
    """Two convolutions, two linear layers, pooling and activations of several kinds."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"lr": 0.05, **kwargs})
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding="same"), nn.MaxPool2d(2), nn.ReLU(inplace=True),
            nn.Sequential(nn.Conv2d(4, 6, 3, bias=False, groups=2), nn.AvgPool2d(2), nn.Tanh()),
            nn.Flatten(), nn.Linear(24, 8, bias=False), nn.GELU(), nn.Identity(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(8, 6), nn.LeakyReLU(), nn.Linear(6, 3))


class Normalised(FederatedModule):
    """A network with every kind of normalisation."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"lr": 0.05, **kwargs})
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4),
            nn.AdaptiveAvgPool2d(2), nn.LayerNorm([2, 2]), nn.Flatten(),
            nn.Linear(16, 6), nn.BatchNorm1d(6, affine=False), nn.SiLU(),
            nn.LayerNorm(6, bias=False),
        )  # fmt: skip
        self.head = nn.Linear(6, 3)


class Small4(Conv4):
    """4convNet, narrow."""

    def __init__(self, **kwargs) -> None:
        super().__init__(3, 1, image_size=16, width=4, **{"lr": 0.05, **kwargs})


class Flat(MLP):
    """An MLP on images."""

    def __init__(self, **kwargs) -> None:
        super().__init__(144, [9, 7], 3, **kwargs)


def images(sizes=RAGGED, size=12, **kwargs):
    def some(n, seed):
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(n) % 3
        return torch.randn(n, 1, size, size, generator=generator) + y.view(-1, 1, 1, 1), y

    return ClientDatasets(
        train=[some(n, seed) for seed, n in enumerate(sizes)],
        test=[some(4, 100 + seed) for seed in range(len(sizes))],
        num_classes=3,
        **{"batch_size": 4, **kwargs},
    )


def pair(module, algorithm=None, clients=3, datamodule=images, federation=None, **kwargs):
    """Fit one by one and in groups; return both modules and both trainers."""
    fits = []
    for size in (1, clients):
        built = net(module=module)
        settings = {"clients_per_kernel": size, **(federation or {})}
        fits.append(
            (built, fit(built, algorithm, datamodule=datamodule(), federation=settings, **kwargs))
        )
    (alone, first), (grouped, second) = fits
    return alone, grouped, first, second


def assert_close(alone, grouped, tolerance=1e-5):
    for key, value in state(alone).items():
        torch.testing.assert_close(
            state(grouped)[key],
            value,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, k=key: f"{k} {m}",
        )


@pytest.mark.parametrize("module", [LeNet, Flat])
@pytest.mark.parametrize(("clients", "channels_last"), [(2, False), (3, True), (10, False)])
def test_ragged_clients_over_two_local_epochs_train_as_if_alone(module, clients, channels_last):
    settings = {"local_epochs": 2, "channels_last": channels_last}
    alone, grouped, first, second = pair(module, FedAvg(), clients, rounds=1, federation=settings)
    assert not same(state(alone), state(net(module=module)))
    assert_close(alone, grouped)
    assert second.callback_metrics["train/loss"] == pytest.approx(
        float(first.callback_metrics["train/loss"]), rel=1e-5
    )


@pytest.mark.parametrize("module", [Normalised, Small4])
def test_normalisation_is_each_clients_own(module):
    sizes = (12, 6, 10, 12, 2)  # a batch of one has no variance
    size = 16 if module is Small4 else 12
    alone, grouped, *_ = pair(
        module, FedAvg(), 5, lambda: images(sizes, size), rounds=1, federation={"local_epochs": 2}
    )
    assert_close(alone, grouped, 1e-4)


@pytest.mark.parametrize("algorithm", [FedAvg(), FedPer()])
@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(Buffered(2, [1.0, 2.0, 5.0, 5.0]), id="stale"),
        pytest.param(Buffered(5, [0.2, 3.0, 3.0, 3.0]), id="twice-in-a-commit"),
        pytest.param(Cyclic("shuffled"), id="cyclic"),
    ],
)
def test_each_starts_from_the_model_that_it_has_read_with_its_own_batches(algorithm, schedule):
    alone, grouped, first, second = pair(
        Net,
        algorithm,
        3,
        data,
        rounds=6,
        federation={"schedule": schedule, "optimizer_state": "fresh"},
    )
    assert_close(alone, grouped)
    for client in range(4):
        one, other = (loop_of(built).client_store.get(client) or {} for built in (first, second))
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-5)


def test_running_statistics_are_each_clients_own():
    clients = lambda: data((8, 6, 7))  # noqa: E731
    alone, grouped, *_ = pair(lambda: Net(norm=True), FedAvg(), 3, clients, rounds=1)
    assert not torch.equal(state(grouped)["body.1.running_mean"], torch.zeros(5))
    assert_close(alone, grouped)


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5)


def adamw(params):
    return torch.optim.AdamW(params, lr=0.01, weight_decay=0.5)


def adagrad(params):
    return torch.optim.Adagrad(params, lr=0.1, initial_accumulator_value=0.1)


@pytest.mark.parametrize("make", [sgd, adamw, adagrad])
def test_any_elementwise_optimizer_moves_the_body_and_never_a_frozen_head(make):
    class Any(Net):
        def configure_optimizers(self):
            groups = [{"params": self.body.parameters(), "lr": 0.05}]
            return make([*groups, {"params": self.head.parameters()}])

    before = state(net(module=Any))
    clients = lambda: data(RAGGED)  # noqa: E731
    alone, grouped, *_ = pair(Any, FedBABU(), 5, clients, rounds=1)
    assert_close(alone, grouped)
    assert not torch.equal(state(grouped)["body.0.weight"], before["body.0.weight"])
    for key in ("head.weight", "head.bias"):
        assert torch.equal(state(grouped)[key], before[key])


def test_clients_keep_heads_of_their_own():
    kept = Algorithm(train="full", share="body")
    alone, grouped, first, second = pair(
        lambda: Net(weight_decay=0.1), kept, 3, lambda: data(RAGGED), rounds=3, cohort=4
    )
    assert_close(alone, grouped)
    ours, theirs = (built.federated_loop.personal for built in (second, first))
    for client in range(len(RAGGED)):
        for key, value in (theirs.get(client) or {}).items():
            torch.testing.assert_close(ours.get(client)[key], value, rtol=1e-5, atol=1e-5)
    assert not torch.equal(ours.get(0)["head.weight"], ours.get(1)["head.weight"])


def test_the_learning_rate_is_the_rounds():
    class Drops(Net):
        def __init__(self):
            super().__init__(lr_milestones=(0.5,), lr_gamma=0.0)

    alone, grouped, *_ = pair(Drops, FedAvg(), 4, data, rounds=2)
    once = net(module=Drops)
    fit(once, FedAvg(), rounds=1, federation={"clients_per_kernel": 4})
    assert_close(alone, grouped)
    assert same(state(grouped), state(once))


class Augmented(ClientDatasets):
    """Draws random numbers for every batch."""

    def transform_batch(self, batch, training):
        x, y = batch
        return (x + torch.randn_like(x) if training else x), y


def test_augmentation_draws_what_it_draws_for_a_client_alone():
    def clients():
        train = [examples(n, seed) for seed, n in enumerate(RAGGED)]
        return Augmented(train=train, test=train, num_classes=3, batch_size=4)

    before = torch.get_rng_state()
    settings = {"local_epochs": 3}
    alone, grouped, *_ = pair(Net, FedAvg(), 5, clients, rounds=1, federation=settings)
    assert_close(alone, grouped)
    assert torch.equal(torch.get_rng_state(), before)


class Events(pl.Callback):
    """Notes what happens, with the model at hand."""

    def __init__(self) -> None:
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(("start", batch.client, batch_idx, self.weight(pl_module)))

    def on_client_end(self, trainer, pl_module, update):
        assert torch.equal(update.state["head.bias"], pl_module.head.bias)
        self.seen.append(("client", update.client, update.steps, self.weight(pl_module)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(("end", outputs["client"], batch_idx, self.weight(pl_module)))

    @staticmethod
    def weight(module):
        return round(float(module.head.bias.detach()[0]), 4)


def test_callbacks_see_every_client_in_cohort_order_with_its_own_model():
    seen = []
    for size in (1, 3):
        events = Events()
        fit(
            net(), FedAvg(), datamodule=data(RAGGED), callbacks=[events],
            federation={"clients_per_kernel": size},
        )  # fmt: skip
        seen.append(events.seen)
    assert seen[0] == seen[1]
    assert len({weight for kind, *_, weight in seen[1] if kind == "client"}) == 10


def test_a_diverging_client_is_named():
    class Diverges(Net):
        def __init__(self):
            super().__init__(lr=1e30)

    with pytest.raises(FederationError, match=r"client \d, round 0: .* non-finite"):
        fit(net(module=Diverges), FedAvg(), federation={"clients_per_kernel": 4})


def test_a_resumed_run_gives_the_same_bits(tmp_path):
    settings = {"clients_per_kernel": 3, "local_epochs": 2}
    whole, first, second = net(), net(), net(seed=1)
    fit(whole, FedBABU(), rounds=3, federation=settings)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 0

    fit(first, FedBABU(), rounds=3, federation=settings, folder=tmp_path, callbacks=[Stop()])
    checkpoint = next(tmp_path.rglob("last.ckpt"))
    fit(second, FedBABU(), rounds=3, federation=settings, ckpt=checkpoint)
    assert same(state(whole), state(second))


def test_workers_group_within_their_own_share(tmp_path):
    def run(devices, size):
        folder = tmp_path / f"{devices}-{size}"
        several = {"accelerator": "cpu", "devices": devices, "strategy": "ddp_fork"}
        fit(
            net(), FedAvg(), datamodule=data(RAGGED), federation={"clients_per_kernel": size},
            folder=folder, **(several if devices > 1 else {}),
        )  # fmt: skip
        return torch.load(next(folder.rglob("last.ckpt")), weights_only=True)["state_dict"]

    alone = run(1, 1)
    for key, value in run(2, 3).items():
        torch.testing.assert_close(value, alone[key], rtol=1e-5, atol=1e-5)


class Dropped(Net):
    def __init__(self):
        super().__init__(dropout=0.5)


class OwnStep(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


class OwnForward(Net):
    def forward(self, x):
        return super().forward(x)


class OwnHook(Net):
    def on_train_start(self):
        pass


class AfterBackward(Net):
    def on_after_backward(self):
        pass


class Transfers(Net):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Shared(Net):
    def __init__(self):
        super().__init__()
        layer = nn.Linear(5, 5)
        self.body.extend([layer, layer])


class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.body[0].register_forward_hook(lambda *_: None)


class HookedParameter(Net):
    def __init__(self):
        super().__init__()
        self.head.weight.register_hook(lambda grad: grad)


class Patched(Net):
    def __init__(self):
        super().__init__()
        self.head.forward = lambda x: x


class HookedOptimizer(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: None)
        return optimizer


class Cumulative(Net):
    def __init__(self):
        super().__init__()
        self.body.append(nn.BatchNorm1d(5, momentum=None))


class LearnedActivation(Net):
    def __init__(self):
        super().__init__()
        self.body.append(nn.PReLU())


class ByTheStep(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class MySGD(torch.optim.SGD):
    pass


class OwnOptimizer(Net):
    def configure_optimizers(self):
        return MySGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:You have overridden")  # Lightning says which hook it uses
@pytest.mark.parametrize(
    ("module", "settings", "reason"),
    [
        (Dropped, {}, "body.2 is a Dropout with p=0.5"),
        (OwnStep, {}, "OwnStep has its own training_step"),
        (OwnForward, {}, "OwnForward has a forward of its own"),
        (OwnHook, {}, "OwnHook has its own on_train_start"),
        (AfterBackward, {}, "AfterBackward.on_after_backward takes part in every step"),
        (Transfers, {}, "takes part in every batch"),
        (Shared, {}, "two layers share a parameter"),
        (Hooked, {}, "body.0 has hooks"),
        (HookedParameter, {}, "head.weight has hooks"),
        (HookedOptimizer, {}, "SGD has hooks"),
        (Patched, {}, "head is a Linear with a forward of its own"),
        (Cumulative, {}, "body.3 is a BatchNorm1d with momentum=None"),
        (LearnedActivation, {}, "body.3 is a PReLU"),
        (ByTheStep, {}, "a learning rate changes with the step"),
        (OwnOptimizer, {}, "MySGD is not known"),
        (Net, {"accumulate_grad_batches": 2}, "gradients are accumulated"),
        (Net, {"callbacks": [GradientAccumulationScheduler({0: 1})]}, "gradients are accumulated"),
        (Net, {"gradient_clip_val": 1.0}, "gradients are clipped"),
        (Net, {"precision": "bf16-mixed"}, "takes part in every batch"),
    ],
)
def test_what_cannot_be_grouped_is_refused_before_the_first_round(module, settings, reason):
    with pytest.raises(ConfigError, match=f"clients_per_kernel=2: .*{reason}.*; set it to 1"):
        fit(
            net(module=module), FedAvg(), datamodule=data((8, 6, 7, 6)),
            federation={"clients_per_kernel": 2}, **settings,
        )  # fmt: skip


def test_a_plain_lightning_module_is_refused():
    reason = unsupported_reason(trainer(), pl.LightningModule())
    assert reason == "LightningModule is not a FederatedModule"


@pytest.mark.parametrize("value", [0, True, 1.5, "auto"])
def test_a_number_of_clients_is_a_number(value):
    with pytest.raises(ConfigError, match=r"federation.clients_per_kernel must be an integer >= 1"):
        trainer(federation={"clients_per_kernel": value})


@pytest.mark.filterwarnings("ignore:clients .* are trained one by one")
@pytest.mark.filterwarnings("ignore:client 2, round")
def test_of_a_group_only_the_client_that_fails_is_left_out():
    class Broken(ClientDatasets):
        def batches(self, client, split, **kwargs):
            if client == 2 and split == "train" and kwargs.get("key") is not None:
                raise ValueError("no data today")
            return super().batches(client, split, **kwargs)

    class Failures(pl.Callback):
        seen: list[int] = []  # noqa: RUF012

        def on_client_failure(self, trainer, module, failure):
            self.seen.append(failure.client)

    given = [examples(8, seed) for seed in range(4)]
    grouped, alone = net(), net()
    skipping = {"clients_per_kernel": 4, "on_client_failure": "skip"}
    broken = Broken(train=given, test=given, num_classes=3, batch_size=4)
    fit(grouped, FedAvg(), 1, datamodule=broken, federation=skipping, callbacks=[Failures()])
    assert Failures.seen == [2]
    whole = ClientDatasets(train=given, test=given, num_classes=3, batch_size=4)
    cohort = {"sampler": FixedCohorts([[0, 1, 3]])}
    fit(alone, FedAvg(), 1, cohort=3, datamodule=whole, federation=cohort)
    for key, value in state(alone).items():
        torch.testing.assert_close(value, state(grouped)[key], atol=1e-5, rtol=1e-5)
