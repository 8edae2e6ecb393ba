"""A number over clients is the same in the log, the summary, the tables and the report."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fedlightning import FedAvg, FedBABU, PersonalizationCallback
from fedlightning.__main__ import main
from fedlightning.callbacks import ClassAccuracy
from fedlightning.core.statistics import Spread, over_clients
from fedlightning.datamodules import ClientDatasets
from fedlightning.reporting import read_clients_csv
from tests.toys import CLASSES, Net, data, examples, fit, loop_of, net

QUOTIENTS = [7, 3, 9, 12, 5, 0, 11, 8, 2, 10, 6, 4, 1, 12, 9]  # of twelve, fifteen clients


class Told(Net):
    """Its accuracy on a client's test data is what the data says."""

    def test_step(self, batch, batch_idx):
        x, _ = batch
        self.log("global/acc", x[0, 0], batch_size=len(x))
        self.log("global/loss", x[0, 1], batch_size=len(x))


def told(accuracies, sizes=None) -> ClientDatasets:
    """Return clients on whose test data ``Told`` has these accuracies."""
    sizes = sizes or [4] * len(accuracies)
    test = [examples(n, seed) for seed, n in enumerate(sizes)]
    for (x, _), accuracy in zip(test, accuracies, strict=True):
        x[:, 0], x[:, 1] = accuracy, 1.0
    train = [examples(6, seed) for seed in range(len(sizes))]
    return ClientDatasets(
        train=train, test=test, num_classes=CLASSES, batch_size=4, seed=0, check_data=False
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def run(folder, accuracies, sizes=None, **kwargs):
    callback = PersonalizationCallback(epochs=1, nearest_mean=False)
    some = told(accuracies, sizes)
    built = fit(
        net(module=Told), FedBABU(), rounds=1, datamodule=some, folder=folder,
        callbacks=[callback], **kwargs,
    )  # fmt: skip
    (Path(built.log_dir) / "config.yaml").write_text("seed_everything: 0\n")
    assert main(["report", str(folder)]) == 0
    return built, callback, rows(folder / "summary.csv")[0]


def test_fifteen_clients_have_the_same_worst_tenth_in_log_and_report(tmp_path):
    values = [quotient / 12 for quotient in QUOTIENTS]
    built, callback, reported = run(tmp_path, values)
    logged = {name: float(value) for name, value in built.callback_metrics.items()}
    # one client is the tenth of fifteen, rounded down: the one with 0 of 12
    assert logged["personalized/acc_worst_decile"] == 0.0
    assert float(reported["acc_after_worst_decile"]) == 0.0
    total, squares = sum(QUOTIENTS), sum(quotient**2 for quotient in QUOTIENTS)
    assert (total, squares) == (99, 875)
    jain = 99**2 / (15 * 875)
    assert logged["personalized/acc_jain"] == pytest.approx(jain, rel=1e-6)
    assert float(reported["acc_after_jain"]) == pytest.approx(jain, rel=1e-6)
    assert Spread.of(record.acc_after for record in callback.records).jain == pytest.approx(jain)
    for ours, theirs in (
        ("acc", "acc_after"), ("acc_std", "acc_after_std_clients"), ("acc_min", "acc_after_min"),
        ("acc_p10", "acc_after_p10"), ("acc_p90", "acc_after_p90"),
    ):  # fmt: skip
        logged_value = float(rows(Path(built.log_dir) / "metrics.csv")[0][f"personalized/{ours}"])
        assert logged_value == pytest.approx(float(reported[theirs]), rel=1e-6)


def test_jain_of_clients_that_all_have_nothing_is_undefined_in_log_and_report(tmp_path):
    built, _, reported = run(tmp_path, [0.0] * 3)
    assert math.isnan(float(built.callback_metrics["personalized/acc_jain"]))
    assert reported["acc_after_jain"] == ""


def test_an_undefined_accuracy_is_left_out_and_counted_everywhere(tmp_path, capsys):
    built, _, reported = run(tmp_path, [0.25, math.nan, 0.75, 0.5], [2, 8, 4, 4])
    logged = rows(Path(built.log_dir) / "metrics.csv")[0]
    weighted = (2 * 0.25 + 4 * 0.75 + 4 * 0.5) / 10
    for name in ("global/acc", "initial/acc", "personalized/acc"):
        assert float(logged[name]) == 0.5
        assert float(logged[f"{name}_weighted"]) == pytest.approx(weighted)
        assert float(logged[f"{name}_undefined"]) == 1
    assert "global/loss_undefined" not in logged
    records = read_clients_csv(Path(built.log_dir) / "clients.csv")
    assert math.isnan(records[1].acc_after)
    assert float(reported["acc_after"]) == 0.5
    assert reported["clients"] == "3"
    printed = capsys.readouterr().out
    assert "1 client with an undefined accuracy left out" in printed
    assert "without test data" not in printed


def test_a_metric_that_no_client_has_is_undefined():
    assert over_clients("auc", [math.nan, math.nan], [3, 4]) == {
        "auc": pytest.approx(math.nan, nan_ok=True), "auc_undefined": 2.0,
    }  # fmt: skip


def test_the_weighted_mean_is_that_over_all_examples():
    module, some = net(), data((8, 6, 7, 5), val_fraction=0.4)
    built = fit(module, FedAvg(), datamodule=some)
    losses, sizes = {}, {}
    for split in ("val", "test"):
        batches = [batch for c in range(4) for batch in some.batches(c, split)]
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        sizes[split] = [some.num_examples(c, split) for c in range(4)]
        with torch.no_grad():
            losses[split] = float(F.cross_entropy(module.eval()(x), y))
    assert len(set(sizes["val"])) > 1
    logged = built.callback_metrics
    assert float(logged["val/loss_weighted"]) == pytest.approx(losses["val"], rel=1e-5)
    assert float(logged["global/loss_weighted"]) == pytest.approx(losses["test"], rel=1e-5)
    assert float(logged["val/loss"]) != pytest.approx(losses["val"], rel=1e-5)


def test_a_name_of_the_modules_own_is_not_overwritten():
    class Own(Told):
        def test_step(self, batch, batch_idx):
            super().test_step(batch, batch_idx)
            self.log("global/acc_weighted", 7.0)

    built = fit(net(module=Own), FedAvg(), rounds=1, datamodule=told([0.5, 1.0], [1, 3]))
    assert float(built.callback_metrics["global/acc_weighted"]) == 7.0


def test_class_accuracies_are_means_over_the_clients_that_have_the_class():
    module = net()
    callback = PersonalizationCallback(epochs=2, lr=0.3)
    some = data((8, 6, 7, 5), eval_batch_size=3)
    built = fit(module, FedBABU(), datamodule=some, callbacks=[callback, ClassAccuracy()])
    by_class: dict[int, list[float]] = {label: [] for label in range(CLASSES)}
    tuned: dict[int, list[float]] = {label: [] for label in range(CLASSES)}

    def note(found, x, y):
        with torch.no_grad():
            right = module.eval()(x).argmax(1) == y
        for label in y.unique().tolist():
            found[label].append(float(right[y == label].double().mean()))

    own = [[torch.cat(p) for p in zip(*some.batches(c, "test"), strict=True)] for c in range(4)]
    for x, y in own:
        note(by_class, x, y)
    with callback.personalizer(built).at_work() as personalizer:
        for client, (x, y) in enumerate(own):
            personalizer.client(client)
            note(tuned, x, y)
    assert any(len(values) < 4 for values in by_class.values()), "each client has every class"
    for label in range(CLASSES):
        for name, found in (("global", by_class), ("personalized", tuned)):
            logged = float(built.callback_metrics[f"{name}/acc_class_{label}"])
            assert logged == pytest.approx(sum(found[label]) / len(found[label]))
    assert not any("class" in name and "weighted" in name for name in built.callback_metrics)
    assert loop_of(built).evaluator.per_class is False


def test_classes_are_counted_only_where_somebody_asks():
    assert not any("class" in name for name in fit(net(), FedAvg()).callback_metrics)
