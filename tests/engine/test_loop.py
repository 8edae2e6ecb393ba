"""The walk of a round: what moves, what stays, in which order hooks fire."""

from __future__ import annotations

import gc
import weakref

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedlightning import Algorithm, FedAvg, FedBABU, FederatedModule
from fedlightning.core.seeding import Key
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation.sampling import FixedCohorts
from fedlightning.models import Conv4
from tests.toys import Net, data, fit, loop_of, net, same, sgd_by_hand, state, trainer


def adam(params):
    return torch.optim.AdamW(params, lr=0.1, weight_decay=0.5)


def adagrad(params):
    return torch.optim.Adagrad(params, lr=0.1, weight_decay=0.5)


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.5)


class AnyOptimizer(Net):
    """Gives its optimizer *all* parameters, frozen or not, as a user might."""

    def __init__(self, make=sgd) -> None:
        super().__init__(norm=True)
        self.make = make

    def configure_optimizers(self):
        return self.make(self.parameters())


@pytest.mark.parametrize("make", [sgd, adam, adagrad])
def test_head_is_bit_identical_after_three_rounds_whatever_the_optimizer(make):
    module = net(module=AnyOptimizer, make=make)
    before = module.part_state_dict("head"), module.part_state_dict("body")
    fit(module, FedBABU(), rounds=3, datamodule=data((8, 6, 7)))
    assert same(module.part_state_dict("head"), before[0])
    assert not same(module.part_state_dict("body"), before[1])


def test_integer_buffers_keep_dtype_and_value_and_running_statistics_are_averaged():
    module = net(norm=True)
    before = state(module)
    fit(module, FedAvg(), datamodule=data((8, 6, 7)))
    after = state(module)
    assert after["body.1.num_batches_tracked"].dtype is torch.int64
    assert torch.equal(after["body.1.num_batches_tracked"], before["body.1.num_batches_tracked"])
    assert not torch.equal(after["body.1.running_mean"], before["body.1.running_mean"])


def test_a_wrong_head_is_refused_even_where_the_algorithm_needs_none():
    with pytest.raises(ConfigError, match=r"head='fc' matches no parameter"):
        fit(net(head="fc"), FedAvg())


def test_gradient_flags_are_as_before_once_the_fit_is_over():
    module = net()
    fit(module, FedBABU())
    assert all(p.requires_grad for p in module.parameters())


def test_freeze_head_is_a_hook_that_a_subclass_may_extend():
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.body.append(nn.Linear(5, 5))

        def freeze_head(self) -> None:
            super().freeze_head()
            self.body[-1].requires_grad_(False)

    module = net(module=Scaled)
    before = state(module)
    fit(module, FedBABU())
    after = state(module)
    assert torch.equal(after["body.3.weight"], before["body.3.weight"])
    assert not torch.equal(after["body.0.weight"], before["body.0.weight"])


def test_one_client_and_one_round_of_fedavg_equals_trainer_fit_on_that_client():
    federated, central = net(), net()
    fit(federated, FedAvg(), rounds=1, datamodule=data((8,)), federation={"local_epochs": 2})

    clients = data((8,))
    clients.setup()
    epochs = iter([list(clients.batches(0, "train", key=Key(0, "fit", 0, 0, e))) for e in range(2)])

    class Epochs(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(next(epochs))

    central.lr_milestones = ()
    stock = pl.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    stock.fit(central, DataLoader(Epochs(), batch_size=None))
    assert same(state(federated), state(central))


def test_two_clients_by_hand_give_the_exact_mean_of_their_bodies():
    module, first, second = net(), net(), net()
    fit(module, FedBABU(), rounds=1, datamodule=data((8, 6)))

    clients = data((8, 6))
    clients.setup()
    for client, alone in ((0, first), (1, second)):
        alone.freeze_head()
        batches = list(clients.batches(client, "train", key=Key(0, "fit", 0, client)))
        sgd_by_hand(alone, batches, lr=0.1)
    for key in module.part_keys("body"):
        mean = (first.state_dict()[key].double() + second.state_dict()[key].double()) / 2
        torch.testing.assert_close(module.state_dict()[key].double(), mean, atol=1e-6, rtol=0)


def test_a_seed_repeats_a_run_and_another_seed_does_not():
    runs = []
    for seed in (1, 1, 2):
        module = net(dropout=0.5)
        fit(module, FedAvg(), cohort=2, rounds=3, federation={"seed": seed})
        runs.append(state(module))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_a_client_depends_on_round_and_id_alone_not_on_who_trained_before_it():
    results = []
    for cohort in ((0, 1, 2), (2, 1, 0)):
        module = net(dropout=0.5)
        fit(module, FedAvg(), rounds=1, cohort=3, federation={"sampler": FixedCohorts([cohort])})
        results.append(state(module))
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], atol=1e-7, rtol=0)


def test_momentum_does_not_leak_from_client_to_client():
    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            assert trainer.optimizers[0].state == {}

    fit(net(), FedAvg(), callbacks=[Watch()])


def test_an_update_is_a_view_of_the_resident_module_not_a_clone():
    class Watch(pl.Callback):
        def on_client_end(self, trainer, module, update):
            for key, value in module.state_dict().items():
                assert update.state[key].data_ptr() == value.data_ptr()

    fit(net(), FedAvg(), callbacks=[Watch()])


def test_what_a_callback_does_to_the_global_model_holds_for_every_client():
    class Shift(pl.Callback):
        def on_aggregate_end(self, trainer, module):
            with torch.no_grad():
                module.head.bias.fill_(5.0)

    starts: list[float] = []

    class Seen(Net):
        def on_train_start(self):
            starts.append(float(self.head.bias[0]))

    fit(net(module=Seen), FedBABU(), callbacks=[Shift()])
    assert starts[4:] == [5.0] * 4


def test_modes_and_gradient_flags_do_not_leak_from_client_to_client():
    starts: list[tuple[bool, bool]] = []

    class Careless(Net):
        def on_train_start(self):
            starts.append((self.training, self.body[0].weight.requires_grad))

        def on_train_end(self):
            self.eval()
            self.body[0].weight.requires_grad_(False)

    fit(net(module=Careless), FedAvg())
    assert starts == [(True, True)] * 8


def test_an_evaluation_step_that_draws_is_seeded_too():
    class Random(Net):
        def test_step(self, batch, batch_idx):
            self.log("global/draw", torch.rand(()))

    draws = []
    for _ in range(2):
        torch.rand(3)
        draws.append(float(fit(net(module=Random), FedAvg()).callback_metrics["global/draw"]))
    assert draws[0] == draws[1]


def test_no_clone_outlives_its_update():
    class Watch(pl.Callback):
        alive: list[weakref.ref] = []  # noqa: RUF012

        def on_client_end(self, trainer, module, update):
            self.alive.append(weakref.ref(update))

    module = net()
    watch = Watch()
    fit(module, FedAvg(), rounds=3, callbacks=[watch])
    gc.collect()
    assert len(watch.alive) == 12
    assert not any(reference() for reference in watch.alive)


def test_kept_parts_stay_with_their_clients():
    module = net()
    built = fit(module, Algorithm(train="full", share="body"), rounds=2)
    personal = loop_of(built).personal
    heads = [personal.get(client)["head.weight"] for client in range(4)]
    assert len(personal) == 4
    assert all(not torch.equal(heads[0], other) for other in heads[1:])
    assert torch.equal(module.state_dict()["head.weight"], net().state_dict()["head.weight"])


def test_fedavg_and_fedbabu_clients_keep_nothing():
    for algorithm in (FedAvg(), FedBABU()):
        assert len(loop_of(fit(net(), algorithm)).personal) == 0


def test_metrics_are_weighted_by_examples_within_a_client_and_over_clients():
    class Counting(Net):
        def training_step(self, batch, batch_idx):
            self.log("size", float(len(batch[1])))
            return super().training_step(batch, batch_idx)

    built = fit(net(module=Counting), FedAvg(), rounds=1, datamodule=data((8, 5)))
    # client 0: batches of 4 and 4 -> 4; client 1: 4 and 1 -> (4*4 + 1*1)/5 = 3.4
    assert float(built.callback_metrics["size"]) == pytest.approx((4 * 8 + 3.4 * 5) / 13)


def test_global_accuracy_is_the_mean_over_clients():
    built = fit(net(), FedAvg(), rounds=1, datamodule=data((8, 5)))
    module, clients = built.lightning_module, data((8, 5))
    clients.setup()
    accuracies = []
    for client in range(2):
        ((x, y),) = clients.batches(client, "test")
        accuracies.append(float((module(x).argmax(1) == y).double().mean()))
    assert float(built.callback_metrics["global/acc"]) == pytest.approx(sum(accuracies) / 2)


def test_validation_data_are_logged_by_validation_step_and_test_data_by_test_step():
    built = fit(net(), FedAvg(), datamodule=data((8, 6), val_fraction=0.5))
    assert {"val/acc", "val/loss", "global/acc", "global/loss"} <= built.callback_metrics.keys()
    assert "val/acc" not in fit(net(), FedAvg()).callback_metrics


def test_an_update_that_is_not_finite_ends_the_run_and_names_client_and_round():
    class Diverging(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * float("nan")

    with pytest.raises(FederationError, match=r"client 0, round 0: body\.0\.weight .* non-finite"):
        fit(net(module=Diverging), FedAvg(), cohort=1, federation={"sampler": FixedCohorts([[0]])})


def test_channels_last_changes_the_layout_and_nothing_that_matters(tmp_path):
    random = torch.Generator().manual_seed(0)

    def some(n: int) -> tuple[Tensor, Tensor]:
        return torch.rand(n, 3, 16, 16, generator=random), torch.arange(n) % 3

    images = ClientDatasets(train=[some(8), some(8)], test=[some(4), some(4)], num_classes=3)
    plain, last = (net(module=Conv4, num_classes=3, image_size=16, width=8) for _ in range(2))
    fit(plain, FedBABU(), datamodule=images, federation={"channels_last": False})
    fit(last, FedBABU(), datamodule=images)  # what it is on a CPU unless somebody says otherwise
    assert plain.body.features[1][0].weight.is_contiguous()
    weight = last.body.features[1][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    for key, value in state(plain).items():
        torch.testing.assert_close(value, state(last)[key], atol=1e-4, rtol=1e-4)


def test_nothing_trainable_is_refused():
    module = net()
    module.body.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        fit(module, FedBABU())


def test_ordinary_dataloaders_are_refused_because_nobody_knows_whose_data_they_hold():
    with pytest.raises(ConfigError, match="does not say which client has which examples"):
        trainer(FedAvg()).fit(net(), train_dataloaders=DataLoader([1, 2]))


class Plain(pl.LightningModule):
    """Knows nothing of federation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    def training_step(self, batch):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def test_a_plain_lightning_module_works_when_its_head_is_named():
    module = net(module=Plain)
    before = state(module)
    built = fit(module, FedBABU(), federation={"head": "net.2"})
    assert torch.equal(module.state_dict()["net.2.weight"], before["net.2.weight"])
    assert not torch.equal(module.state_dict()["net.0.weight"], before["net.0.weight"])
    assert {"train_loss", "global/acc"} <= built.callback_metrics.keys()


def test_a_plain_module_without_a_named_head_is_told_its_last_linear_layer():
    with pytest.raises(ConfigError, match=r"set federation\.head .* 'net\.2'"):
        fit(net(module=Plain), FedBABU())
    fit(net(module=Plain), FedAvg())  # needs no head


def test_buffers_that_are_no_part_of_the_state_do_not_leak_between_clients():
    seen: list[float] = []

    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()), persistent=False)

        def on_train_start(self):
            seen.append(float(self.count))

        def training_step(self, batch, batch_idx):
            self.count += 1
            return super().training_step(batch, batch_idx)

    fit(net(module=Counting), FedAvg())
    assert seen == [0.0] * 8


class Adversary(pl.LightningModule):
    """Is no classifier: its forward makes examples."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(2, 4)

    def forward(self, noise):
        return self.generator(noise)

    def training_step(self, batch):
        return self(torch.randn(len(batch[1]), 2)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_that_is_no_classifier_trains_and_says_why_it_is_not_measured():
    with pytest.warns(UserWarning, match="are not measured: Adversary has no test_step"):
        built = fit(net(module=Adversary), FedAvg())
    assert built.current_epoch == 2


def test_a_plain_module_predicts_probabilities():
    built = fit(net(module=Plain), FedAvg())
    probabilities = torch.cat(built.predict(built.lightning_module, datamodule=data()))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(16))


class Recorder(pl.Callback):
    """Writes down the server's events."""

    HOOKS = (
        "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start",
        "on_client_end", "on_train_batch_end", "on_aggregate_end", "on_validation_start",
        "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end",
        "on_validation_end", "on_train_epoch_end", "on_train_end", "on_fit_end",
    )  # fmt: skip

    def __init__(self, log: list[str]) -> None:
        for hook in self.HOOKS:
            setattr(self, hook, lambda *_, hook=hook: log.append(f"server.{hook}"))


class Recorded(Net):
    """Writes down the client's events."""

    def __init__(self, log: list[str]) -> None:
        FederatedModule.__init__(self)
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.note = log.append

    def on_train_start(self):
        self.note("client.on_train_start")

    def on_train_epoch_start(self):
        self.note("client.on_train_epoch_start")

    def on_train_batch_start(self, batch, batch_idx):
        self.note("client.on_train_batch_start")

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.note("client.on_train_batch_end")

    def on_train_epoch_end(self):
        self.note("client.on_train_epoch_end")

    def on_train_end(self):
        self.note("client.on_train_end")

    def freeze_head(self):
        self.note("client.freeze_head")
        super().freeze_head()


def test_hooks_of_two_rounds_and_two_clients_fire_in_this_order():
    log: list[str] = []
    fit(Recorded(log), FedBABU(), datamodule=data((4, 4)), callbacks=[Recorder(log)])
    client = [
        "server.on_train_batch_start",
        "client.freeze_head",
        "client.on_train_start",
        "client.on_train_epoch_start",
        "client.on_train_batch_start",
        "client.on_train_batch_end",
        "client.on_train_epoch_end",
        "client.on_train_end",
        "server.on_client_end",
        "server.on_train_batch_end",
    ]
    round_ = [
        "server.on_train_epoch_start",
        *client,
        *client,
        "server.on_aggregate_end",
        "server.on_validation_start",
        *["server.on_validation_batch_start", "server.on_validation_batch_end"] * 2,
        "server.on_validation_epoch_end",
        "server.on_validation_end",
        "server.on_train_epoch_end",
    ]
    assert log == [
        "client.freeze_head",  # before the optimizers are built
        "server.on_fit_start",
        "server.on_train_start",
        *round_,
        *round_,
        "server.on_train_end",
        "server.on_fit_end",
    ]
