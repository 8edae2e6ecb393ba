"""The metric that counts, whatever the task: in tables, pictures, summary, report and stopping."""

import csv
import re

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn
from torch.nn import functional as F

from fedlightning import FedAvg, FederatedModule, FederatedTrainer, Federation
from fedlightning.__main__ import main
from fedlightning.callbacks import (
    ForgettingCallback,
    MainMetricStopping,
    PersonalizationCallback,
)
from fedlightning.core.main_metric import MainMetric
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError, DataError
from fedlightning.reporting import ClientRecord, EpochRecord
from fedlightning.reporting.figures.save import clients_figure, finetuning_figure
from fedlightning.studies.run_reader import final_metrics
from tests.toys import net

NAMES = ("east", "north", "south", "west")


class Task(FederatedModule):
    """Four features in, a task's outputs out."""

    outputs = 1

    def __init__(self):
        super().__init__(lr=0.05)
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, self.outputs)

    def forward(self, x):
        return self.head(self.body(x).tanh())

    def validation_step(self, batch, batch_idx):
        self.measure(batch, "val")

    def test_step(self, batch, batch_idx):
        self.measure(batch, "test")


class Regression(Task):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x)[:, 0], y)

    def measure(self, batch, split):
        x, y = batch
        self.log(f"{split}/mae", (self(x)[:, 0] - y).abs().mean())
        self.log(f"{split}/loss", F.mse_loss(self(x)[:, 0], y))


class MultiLabel(Task):
    outputs = 3

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y)

    def measure(self, batch, split):
        x, y = batch
        found = (self(x) > 0).float()
        self.log(f"{split}/f1", 2 * (found * y).sum() / (found + y).sum().clamp(min=1))


class SelfSupervised(Task):
    """Restores what was blotted out: there are no labels."""

    outputs = 4

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch * (torch.rand_like(batch) > 0.25)), batch)

    def measure(self, batch, split):
        self.log(f"{split}/loss", F.mse_loss(self(batch), batch))


class Preference(Task):
    """Which of two items is liked more (Bradley-Terry)."""

    def margins(self, batch):
        x, y = batch
        return (self(x["one"]) - self(x["other"]))[:, 0] * (2 * y - 1)

    def training_step(self, batch, batch_idx):
        return -F.logsigmoid(self.margins(batch)).mean()

    def measure(self, batch, split):
        self.log(f"{split}/auroc", (self.margins(batch) > 0).float().mean())


def pairs(task, count, seed):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    if task is Regression:
        return x, x.sum(dim=1) + seed
    if task is MultiLabel:
        return x, (x[:, :3] > 0).float()
    if task is Preference:
        return [{"one": a, "other": -a} for a in x], (x[:, 0] > 0).float()
    return x, None


def clients(task, **options):
    def part(count, first):
        return {name: pairs(task, count, first + at) for at, name in enumerate(NAMES)}

    if task is Preference:  # items that are mappings stay a dataset
        options |= {"collate": torch.utils.data.default_collate}
    return ClientDatasets(part(20, 0), part(8, 100), batch_size=5, **options)


def run(task, folder, rounds=2, seed=0, callbacks=(), data=None, **federation):
    trainer = FederatedTrainer(
        federation=Federation(FedAvg(), cohort_size=1.0, seed=seed, **federation),
        max_epochs=rounds, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*callbacks],
    )  # fmt: skip
    trainer.fit(net(seed, module=task), datamodule=data or clients(task))
    return trainer


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("task", "name", "mode"), [
    (Regression, "mae", "min"),
    (MultiLabel, "f1", "max"),
    (SelfSupervised, "loss", "min"),
    (Preference, "auroc", "max"),
])  # fmt: skip
def test_a_run_follows_the_metric_that_its_module_logs_first(task, name, mode, tmp_path, capsys):
    trainer = run(task, tmp_path, callbacks=[PersonalizationCallback(epochs=1, nearest_mean=False)])
    assert trainer.federated_loop.evaluator.main_metric == MainMetric(name, mode)
    folder = next(tmp_path.rglob("clients.csv")).parent
    assert {"clients.png", "curves.png"} <= {path.name for path in folder.iterdir()}
    values = [float(row[f"{name}_after"]) for row in rows(folder / "clients.csv")]
    logged = trainer.callback_metrics
    assert logged[f"personalized/{name}"].item() == pytest.approx(np.mean(values))
    worst = min(values) if mode == "max" else max(values)
    assert logged[f"personalized/{name}_worst_decile"].item() == pytest.approx(worst)
    shown = capsys.readouterr().out
    assert f"{name} on the clients' own test data" in shown
    assert f"{np.mean(values):.4g}" in shown


def test_a_metric_that_is_chosen_comes_first(tmp_path):
    trainer = run(Regression, tmp_path, rounds=1, main_metric="loss")
    assert trainer.federated_loop.evaluator.main_metric == MainMetric("loss", "min")
    with pytest.raises(ConfigError, match=r"main_metric='mea' is not measured .*mean 'mae'"):
        run(Regression, tmp_path, rounds=1, main_metric="mea")
    with pytest.raises(ConfigError, match="main_metric_mode must be one of min, max"):
        Federation(main_metric_mode="up")


def test_the_direction_follows_from_the_name_unless_it_is_given():
    modes = {name: MainMetric.chosen([name]).mode for name in ("val_loss", "ppl", "mse", "wer")}
    assert set(modes.values()) == {"min"}
    assert MainMetric.chosen(["global/auroc", "global/loss"]) == MainMetric("auroc", "max")
    assert MainMetric.chosen(["test/loss", "test/acc", "test/f1"]).name == "acc"
    assert MainMetric.chosen(["depth"], mode="min").mode == "min"


def test_figures_put_the_client_with_the_largest_error_on_the_left():
    nan = float("nan")
    errors = {0: 2.0, 1: 9.0, 2: 5.0}
    records = [
        ClientRecord(c, 5, 5, nan, nan, nan, nan, {"mae_before": 10.0, "mae_after": value})
        for c, value in errors.items()
    ]
    figure = clients_figure(records, metric=MainMetric("mae", "min"))
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "0"]
    assert ax.get_ylabel() == "mae on own test data"


def test_the_curve_of_fine_tuning_follows_the_metric(tmp_path):
    personal = PersonalizationCallback(epochs=2, nearest_mean=False, curve=True, lr=0.01)
    run(Regression, tmp_path, rounds=1, callbacks=[personal])
    folder = next(tmp_path.rglob("finetuning.csv")).parent
    table, clients_table = rows(folder / "finetuning.csv"), rows(folder / "clients.csv")
    assert list(table[0]) == [
        "epoch", "num_clients", "mae_mean", "mae_std", "mae_p90", "val_mae_mean",
    ]  # fmt: skip
    for row, column in ((table[0], "mae_before"), (table[2], "mae_after")):
        values = [float(client[column]) for client in clients_table]
        assert float(row["mae_mean"]) == pytest.approx(np.mean(values))
        assert float(row["mae_p90"]) == pytest.approx(np.percentile(values, 90))
    figure = finetuning_figure(
        [EpochRecord.of(e, [(9.0 - e, 3.0)], MainMetric("mae", "min")) for e in range(2)],
        metric=MainMetric("mae", "min"),
    )
    (ax,) = figure.axes
    assert (ax.get_ylabel(), ax.get_title(loc="left")[:16]) == ("mae", "Mae over epochs ")
    assert ax.get_lines()[0].get_ydata().tolist() == [9.0, 8.0]
    assert "ninetieth percentile  8" in {text.get_text() for text in ax.texts}


def test_an_error_that_grows_is_forgotten(tmp_path):
    # two sanity checks, four turns, the round's test data, and the same four clients later
    errors = iter([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 0.5, 0.5, 0.5, 0.5, 5.0, 5.0, 5.0, 5.0])

    class Given(Regression):
        def measure(self, batch, split):
            self.log(f"{split}/mae", next(errors))

    callback = ForgettingCallback()
    run(Given, tmp_path, rounds=1, callbacks=[callback], data=clients(Regression))
    assert callback.metric == MainMetric("mae", "min")
    assert sorted(callback.after.values()) == [1.0, 2.0, 3.0, 4.0]
    assert set(callback.now.values()) == {5.0}
    assert callback.forgetting == {client: 5.0 - then for client, then in callback.after.items()}
    state = callback.state_dict()
    other = ForgettingCallback()
    other.load_state_dict(state)
    assert other.forgetting == callback.forgetting


def test_who_selects_by_test_data_is_told_the_metric_to_take(tmp_path):
    stopping = EarlyStopping("test/mae")
    with pytest.warns(UserWarning, match="looks at 'test/mae': .* take 'val/mae'"):
        run(Regression, tmp_path, rounds=1, callbacks=[stopping])


def folders_of(tmp_path, lr):
    """Return the folders of two seeds of a regression, as compare would leave them."""
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {class_path: tests.test_any_task.Regression}\n"
        "data: {class_path: tests.test_any_task.RegressionData}\n"
        f"federation: {{algorithm: FedAvg, cohort_size: 1.0, local_epochs: {lr}}}\n"
        "trainer: {max_epochs: 2, enable_progress_bar: false, enable_model_summary: false,"
        " callbacks: [{class_path: PersonalizationCallback, init_args: {epochs: 1,"
        " nearest_mean: false}}]}\n"
    )
    for seed in (0, 1):
        root = tmp_path / f"{lr}-{seed}"
        words = [f"--seed_everything={seed}", f"--trainer.default_root_dir={root}"]
        assert main(["fit", f"--config={config}", *words]) == 0


class RegressionData(ClientDatasets):
    def __init__(self):
        given = clients(Regression)
        super().__init__(
            dict(zip(NAMES, given._sources[0], strict=True)),
            dict(zip(NAMES, given._sources[1], strict=True)), batch_size=5,
        )  # fmt: skip


def test_the_report_of_a_regression_says_that_less_is_better(tmp_path, capsys):
    for epochs in (1, 4):
        folders_of(tmp_path, epochs)
    shown = dict(final_metrics(next(tmp_path.glob("*-0"))))
    last = rows(next(next(tmp_path.glob("*-0")).rglob("metrics.csv")))[-1]
    assert shown == {name: float(last[name]) for name in ("test/mae", "personalized/mae")}
    assert main(["report", str(tmp_path), f"--output={tmp_path / 'report'}"]) == 0
    assert "mae, mean ± seeds" in capsys.readouterr().out
    table = rows(tmp_path / "report" / "summary.csv")
    after = {row["variant"]: float(row["mae_after"]) for row in table}
    page = (tmp_path / "report" / "report.html").read_text()
    shown = {f"{value:.4g}" for value in after.values()}
    best = {f"{min(after.values()):.4g}"}
    stressed = set(re.findall(r'class="best">([\d.]+)', page))
    assert stressed & shown == best
    (test,) = [t for t in rows(tmp_path / "report" / "tests.csv") if t["family"] == "all pairs"]
    mine, its = (
        {
            (seed, row["client_id"]): round(float(row["mae_after"]), 6)
            for seed in (0, 1)
            for row in rows(next((tmp_path / f"{epochs}-{seed}").rglob("clients.csv")))
        }
        for epochs in sorted((1, 4), key=lambda n: f"local_epochs={n}" not in test["variant"])
    )
    assert int(test["better"]) == sum(mine[client] < its[client] for client in mine)
    assert int(test["worse"]) == sum(mine[client] > its[client] for client in mine)


def test_training_ends_when_the_error_stands_still(tmp_path):
    class Constant(Regression):
        def measure(self, batch, split):
            self.log(f"{split}/mae", 3.0)

    stopping = MainMetricStopping(patience=2)
    trainer = run(
        Constant, tmp_path, 9, callbacks=[stopping], data=clients(Regression, val_fraction=0.2)
    )
    assert trainer.current_epoch == 3
    assert (stopping.monitor, stopping.mode) == ("val/mae", "min")


def test_stopping_needs_the_metric_on_validation_data(tmp_path):
    with pytest.raises(ConfigError, match=r"MainMetricStopping .*set data.val_fraction"):
        run(Regression, tmp_path, callbacks=[MainMetricStopping()])

    class Silent(Regression):
        def validation_step(self, batch, batch_idx):
            self.log("val/mse", 1.0)

    with pytest.raises(ConfigError, match=r"'mae' is not measured on validation data .*val/mse"):
        run(
            Silent, tmp_path, callbacks=[MainMetricStopping()],
            data=clients(Regression, val_fraction=0.2),
        )  # fmt: skip


@pytest.mark.parametrize(("part", "text"), [
    ((torch.zeros(6, 4), torch.rand(6)), "float32 labels of shape .*a regression needs a training"),
    ((torch.zeros(6, 4), torch.rand(6, 2)), r"float32 labels of shape \(n, 2\)"),
    ((torch.zeros(6, 4), None), "the data has no labels"),
    ([{"x": torch.zeros(4), "y": 1}] * 6, "mappings with x, y: name data.input_key and data.label"),
])  # fmt: skip
def test_labels_that_fit_no_classifier_are_refused_with_the_reason(part, text):
    data = ClientDatasets([part] * 2, [part] * 2)
    trainer = FederatedTrainer(max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(DataError, match=text):
        trainer.fit(net(), datamodule=data)
