"""Every client gets its own model; the global one does not notice."""

from __future__ import annotations

import csv
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn

from fedlightning import Algorithm, FedAvg, FedBABU, PersonalizationCallback
from fedlightning.core.seeding import Key
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError
from fedlightning.personalization.personalizer import nearest_mean_accuracy
from tests.toys import Net, data, examples, fit, loop_of, net, same, sgd_by_hand, state, trainer


def personalised(module, part="head", algorithm=None, datamodule=None, **kwargs):
    """Fit one round, and return the callback, the trainer and every client's fine-tuned state."""
    settings = {"epochs": 2, "lr": 0.1, "part": part, **kwargs}
    built = fit(module, algorithm or FedBABU(), rounds=1, cohort=1, datamodule=datamodule)
    callback = PersonalizationCallback(**settings)
    states, results = [], []
    with callback.personalizer(built).at_work() as personalizer:
        for client in range(4):
            results.append(personalizer.client(client))
            states.append(state(module))
    return built, states, results


@pytest.mark.parametrize("part", ["head", "body", "full"])
def test_personalization_leaves_the_global_state_unchanged(part):
    module, clients = net(norm=True), data((8, 6, 7))
    fit(module, FedBABU(), rounds=1, datamodule=clients)
    before, modes = state(module), [m.training for m in module.modules()]
    callback = PersonalizationCallback(part=part, epochs=2)
    built = trainer(FedBABU())
    built.validate(module, datamodule=clients, verbose=False)
    with callback.personalizer(built).at_work() as personalizer:
        for client in range(3):
            personalizer.client(client)
    assert same(state(module), before)
    assert [m.training for m in module.modules()] == modes
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("part", ["head", "body", "full"])
def test_every_clients_fine_tuned_part_changes_and_nothing_else(part):
    module = net()
    _, states, _ = personalised(module, part)
    globally = state(module)
    moving = set(module.part_keys(part))
    for personal in states:
        for key, value in personal.items():
            assert torch.equal(value, globally[key]) == (key not in moving), key
    for one, other in pairwise(states):
        assert not same(one, other)


def test_head_mode_leaves_the_whole_body_unchanged_batch_norm_statistics_included():
    module = net(norm=True)
    _, states, _ = personalised(module, "head", datamodule=data((8, 6, 7, 8)))
    globally = state(module)
    body = module.part_keys("body")
    assert any("running_mean" in key for key in body)
    assert all(torch.equal(personal[key], globally[key]) for personal in states for key in body)


def test_full_mode_moves_batch_norm_statistics():
    module = net(norm=True)
    _, states, _ = personalised(module, "full", datamodule=data((8, 6, 7, 8)))
    key = next(key for key in module.part_keys("body") if "running_mean" in key)
    assert not torch.equal(states[0][key], module.state_dict()[key])


def test_fine_tuning_starts_from_the_final_global_model_for_clients_never_chosen_too():
    module = net()
    built, states, _ = personalised(module, "head")
    (chosen,) = loop_of(built).cohort(0)
    for client in range(4):
        alone = net()
        alone.load_state_dict(state(module))
        alone.freeze_body()
        clients = data()
        clients.setup()
        batches = [
            batch
            for epoch in range(2)
            for batch in clients.batches(
                client, "train", key=Key(0, "personalize", client=client, epoch=epoch)
            )
        ]
        sgd_by_hand(alone, batches, lr=0.1)
        torch.testing.assert_close(states[client]["head.weight"], alone.head.weight.detach())
    assert chosen in range(4)


def test_clients_with_a_kept_part_start_from_it():
    module = net()
    built, _, results = personalised(module, "head", Algorithm(train="full", share="body"))
    (chosen,) = loop_of(built).cohort(0)
    with torch.no_grad():
        module.head.load_state_dict(
            {k.removeprefix("head."): v for k, v in loop_of(built).personal.get(chosen).items()}
        )
        clients = data()
        clients.setup()
        ((x, y),) = clients.batches(chosen, "test")
        accuracy = float((module(x).argmax(1) == y).double().mean())
    assert results[chosen].record.acc_before == pytest.approx(accuracy)


def test_logged_statistics_are_those_of_the_clients(tmp_path):
    callback = PersonalizationCallback(part="full", epochs=3, lr=0.1)
    built = fit(net(), FedBABU(), folder=tmp_path, callbacks=[callback])
    with next(tmp_path.rglob("clients.csv")).open() as file:
        rows = list(csv.DictReader(file))
    after = torch.tensor([float(row["acc_after"]) for row in rows], dtype=torch.float64)
    logged = {name: float(value) for name, value in built.callback_metrics.items()}
    assert list(rows[0]) == [
        "client_id", "num_train", "num_test", "acc_before", "acc_after", "loss_before", "loss_after"
    ]  # fmt: skip
    assert [int(row["num_train"]) for row in rows] == [8, 6, 7, 5]
    assert logged["personalized/acc"] == pytest.approx(float(after.mean()))
    assert logged["personalized/acc_std"] == pytest.approx(float(after.std(correction=0)))
    assert logged["personalized/acc_min"] == pytest.approx(float(after.min()))
    assert logged["personalized/acc_p10"] == pytest.approx(float(after.quantile(0.1)))
    assert logged["personalized/acc_p90"] == pytest.approx(float(after.quantile(0.9)))
    assert logged["personalized/acc_worst_decile"] == pytest.approx(float(after.min()))
    jain = float(after.sum() ** 2 / (4 * (after**2).sum()))
    assert logged["personalized/acc_jain"] == pytest.approx(jain)
    spread = {name.partition("/")[2] for name in logged if name.startswith("personalized/acc_")}
    assert spread <= {name.partition("/")[2] for name in logged if name.startswith("initial/")}
    assert logged["initial/acc"] == pytest.approx(logged["global/acc"])


def test_every_n_rounds_runs_every_n_rounds_and_at_the_end(tmp_path):
    rounds = []

    class Seen(PersonalizationCallback):
        def run(self, trainer):
            rounds.append(trainer.current_epoch)
            super().run(trainer)

    fit(net(), FedBABU(), rounds=5, callbacks=[Seen(every_n_rounds=2)])
    assert rounds == [1, 3, 4]


def test_rounds_without_validation_are_personalised_too():
    callback = PersonalizationCallback(every_n_rounds=1)
    built = fit(net(), FedBABU(), rounds=2, callbacks=[callback], check_val_every_n_epoch=3)
    assert "personalized/acc" in built.callback_metrics


def test_training_goes_on_as_if_personalization_had_not_been():
    plain, watched = net(dropout=0.3), net(dropout=0.3)
    fit(plain, FedBABU(), rounds=3)
    fit(
        watched,
        FedBABU(),
        rounds=3,
        callbacks=[PersonalizationCallback(epochs=2, every_n_rounds=1)],
    )
    assert same(state(plain), state(watched))


def test_what_the_user_has_frozen_stays_frozen():
    module = net()
    module.body[0].weight.requires_grad_(False)
    _, states, _ = personalised(module, "full", FedAvg())
    frozen = state(module)["body.0.weight"]
    assert all(torch.equal(personal["body.0.weight"], frozen) for personal in states)


def test_a_given_optimizer_is_used():
    module = net()
    _, states, _ = personalised(
        module, "head", optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    )
    assert all(same(personal, state(module)) for personal in states)


def test_clients_without_test_data_are_counted_and_left_out():
    empty = torch.empty(0, 4), torch.empty(0, dtype=torch.long)
    clients = ClientDatasets(
        train=[examples(6, 0), examples(6, 1)], test=[examples(4, 2), empty], num_classes=3
    )
    callback = PersonalizationCallback()
    with pytest.warns(UserWarning, match="no test examples"):
        built = fit(net(), FedBABU(), datamodule=clients, callbacks=[callback])
    assert [record.tested for record in callback.records] == [True, False]
    assert float(built.callback_metrics["personalized/acc"]) == callback.records[0].acc_after


def test_nearest_mean_needs_no_head():
    module = net()
    _, _, results = personalised(module)
    with torch.no_grad():
        clients = data()
        clients.setup()
        ((x, y),), ((xt, yt),) = (list(clients.batches(0, split)) for split in ("train", "test"))
        expected = nearest_mean_accuracy(module.eval().body(x), y, module.body(xt), yt)
    assert results[0].nearest_mean_acc == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:You have overridden")  # Lightning says which one it uses
def test_batches_that_are_no_pairs_have_no_nearest_mean_and_say_so():
    class Dicts(Net):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {"x": batch[0], "y": batch[1]} if isinstance(batch, list | tuple) else batch

        def training_step(self, batch, batch_idx):
            return super().training_step((batch["x"], batch["y"]), batch_idx)

        def test_step(self, batch, batch_idx):
            super().test_step((batch["x"], batch["y"]), batch_idx)

    with pytest.warns(UserWarning, match="nearest class means is not measured"):
        built = fit(net(module=Dicts), FedBABU(), callbacks=[PersonalizationCallback()])
    assert "personalized/acc" in built.callback_metrics
    assert "initial/acc_nearest_mean" not in built.callback_metrics


def test_after_early_stopping_the_metrics_are_where_callers_look_for_them():
    stopping = EarlyStopping("train/loss", patience=1, min_delta=100.0)
    callbacks = [PersonalizationCallback(), stopping]
    built = fit(net(), FedBABU(), rounds=10, callbacks=callbacks)
    assert "personalized/acc" in built.callback_metrics


def test_a_head_of_several_modules_has_no_feature_space():
    class TwoHeads(Net):
        def __init__(self) -> None:
            super().__init__(head=["head", "scale"])
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * super().forward(x)

    _, _, results = personalised(net(module=TwoHeads))
    assert all(result.nearest_mean_acc != result.nearest_mean_acc for result in results)


def test_metrics_of_an_own_test_step_are_reported_before_and_after():
    class Own(Net):
        def test_step(self, batch, batch_idx):
            x, y = batch
            self.log("test_f1", (self(x).argmax(1) == y).float().mean())

    built = fit(net(module=Own), FedBABU(), callbacks=[PersonalizationCallback()])
    assert {"initial/f1", "personalized/f1", "test_f1"} <= built.callback_metrics.keys()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("part", "head tail"),
        ("epochs", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("every_n_rounds", 0),
    ],
)
def test_settings_that_cannot_be_are_refused(argument, value):
    with pytest.raises(ConfigError, match=argument):
        PersonalizationCallback(**{argument: value})


def test_a_stock_trainer_is_refused():
    with pytest.raises(ConfigError, match="needs a FederatedTrainer"):
        PersonalizationCallback().personalizer(pl.Trainer(logger=False, enable_checkpointing=False))


def test_what_cannot_be_personalised_is_refused_before_the_first_round():
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.body.parameters(), lr=0.1) for _ in range(2)]

        def training_step(self, batch, batch_idx):
            raise AssertionError("trained")

    with pytest.raises(ConfigError, match="takes one optimizer, Two has 2"):
        fit(net(module=Two), FedAvg(), callbacks=[PersonalizationCallback()])


def test_a_module_without_a_known_head_is_personalised_as_a_whole():
    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = PersonalizationCallback(part="full", epochs=1)
    with pytest.warns(UserWarning, match=r"nearest class means is not measured: .*net"):
        fit(Plain(), FedAvg(), callbacks=[callback])
    assert len(callback.records) == 4
    with pytest.raises(ConfigError, match="does not say which part is its head"):
        fit(Plain(), FedAvg(), callbacks=[PersonalizationCallback(part="head")])


@pytest.mark.filterwarnings("ignore:.* selects by test data")  # which is not the point here
@pytest.mark.parametrize(("every_n_rounds", "validation"), [(1, 1), (2, 2), (1, 2), (None, 4)])
def test_a_callback_may_monitor_what_personalization_measures(every_n_rounds, validation):
    fit(
        net(), FedBABU(), rounds=4, check_val_every_n_epoch=validation,
        callbacks=[
            EarlyStopping("personalized/acc", mode="max", patience=9),
            PersonalizationCallback(epochs=1, every_n_rounds=every_n_rounds),
        ],
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* selects by test data")  # which is not the point here
def test_a_callback_that_looks_too_often_is_told_what_to_set():
    callbacks = [EarlyStopping("personalized/acc"), PersonalizationCallback(epochs=1)]
    with pytest.raises(ConfigError, match=r"every 1 rounds, but .* every 4; set every_n_rounds=1"):
        fit(net(), FedBABU(), rounds=4, callbacks=callbacks)
