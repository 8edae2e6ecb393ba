"""A view that a data module adds is in logs, tables, figures, summary and report."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch

from fedlightning import FedAvg, FedBABU, PersonalizationCallback
from fedlightning.__main__ import main
from fedlightning.datamodules import CENTRAL, ClientDatasets, ClientTask, EvaluationView
from fedlightning.errors import ConfigError, DataError
from tests.toys import CLASSES, data, examples, fit, loop_of, net

SIZES = (8, 6, 7, 5)
SHIFT = torch.tensor([1.5, -1.0, 0.0, 0.5])


class Shifted(ClientDatasets):
    """Each client also has its test data moved, client 3 has not; and there is a central set."""

    def evaluation_views(self):
        return [
            *super().evaluation_views(),
            EvaluationView("ood", self.evaluated_clients, "shifted"),
            EvaluationView("pair", (0, 2)),
            EvaluationView("central", (CENTRAL,), "all"),
        ]

    def split_examples(self, client, split):
        if client == CENTRAL:
            assert split == "all"
            return examples(40, 1000)
        assert split == "shifted"
        x, y = examples(5 + client, 500 + client)
        return (x + SHIFT, y) if client != 3 else (x[:0], y[:0])


def shifted(**kwargs) -> Shifted:
    return Shifted(
        train=[examples(n, seed) for seed, n in enumerate(SIZES)],
        test=[examples(4, 100 + seed) for seed in range(len(SIZES))],
        num_classes=CLASSES,
        **{"batch_size": 4, "seed": 0, **kwargs},
    )


def accuracy(module, x, y) -> float:
    with torch.no_grad():
        return float((module.eval()(x).argmax(1) == y).double().mean())


def moved(client):
    """Return what client 0, 1 or 2 has in the split ``shifted``, made anew."""
    x, y = examples(5 + client, 500 + client)
    return x + SHIFT, y


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def finished(tmp_path, capsys):
    """Return a finished run: module, trainer, callback, folder, and what it printed."""
    module = net()
    callback = PersonalizationCallback(epochs=3, lr=0.2, curve=True)
    built = fit(module, FedBABU(), datamodule=shifted(), folder=tmp_path, callbacks=[callback])
    folder = tmp_path / "lightning_logs" / "version_0"
    return module, built, callback, folder, capsys.readouterr().out


def personal_accuracies(built, callback, module) -> dict[int, tuple[float, float]]:
    """Fine-tune clients 0 to 2 again; return each one's accuracy on shifted data before, after."""
    found = {}
    for client in range(3):
        before = accuracy(module, *moved(client))
        with callback.personalizer(built).at_work() as personalizer:
            personalizer.client(client)
            found[client] = before, accuracy(module, *moved(client))
    return found


def test_metrics_are_means_over_the_clients_that_have_such_data(finished):
    module, built, callback, folder, _ = finished
    by_hand = personal_accuracies(built, callback, module)
    before = mean(acc for acc, _ in by_hand.values())
    after = mean(acc for _, acc in by_hand.values())
    assert before != after
    logged = rows(folder / "metrics.csv")[-1]
    assert float(logged["ood/global/acc"]) == pytest.approx(before)
    assert float(logged["ood/initial/acc"]) == pytest.approx(before)
    assert float(logged["ood/personalized/acc"]) == pytest.approx(after)
    sizes = [5, 6, 7]
    weighted = sum(n * acc for n, (_, acc) in zip(sizes, by_hand.values(), strict=True)) / 18
    assert float(logged["ood/personalized/acc_weighted"]) == pytest.approx(weighted)
    worst = min(acc for _, acc in by_hand.values())
    assert float(logged["ood/personalized/acc_worst_decile"]) == pytest.approx(worst)


def test_a_view_of_some_clients_has_their_test_data(finished):
    _, _, callback, folder, _ = finished
    logged = rows(folder / "metrics.csv")[-1]
    by_client = {record.client_id: record.acc_after for record in callback.records}
    assert float(logged["pair/personalized/acc"]) == pytest.approx(
        (by_client[0] + by_client[2]) / 2
    )
    assert [row["client_id"] for row in rows(folder / "pair_clients.csv")] == ["0", "2"]


def test_data_of_no_client_is_evaluated_once_and_not_personalised(finished):
    module, built, _, folder, _ = finished
    logged = rows(folder / "metrics.csv")[-1]
    assert float(logged["central/global/acc"]) == pytest.approx(
        accuracy(module, *examples(40, 1000))
    )
    assert not any(name.startswith("central/personalized") for name in logged)
    assert not (folder / "central_clients.csv").exists()
    tasks = list(loop_of(built).data.val_dataloader())
    assert tasks[-1] == ClientTask(CENTRAL, "all", 40)
    assert tasks[:3] == [
        ClientTask(0, "test", 4), ClientTask(0, "shifted", 5), ClientTask(1, "test", 4),
    ]  # fmt: skip


def test_the_main_view_is_what_it_is_without_others(finished, tmp_path):
    _, _, _, folder, _ = finished
    callback = PersonalizationCallback(epochs=3, lr=0.2, curve=True)
    plain = tmp_path / "plain"
    fit(net(), FedBABU(), datamodule=data(SIZES, seed=0), folder=plain, callbacks=[callback])
    for name in ("clients.csv", "finetuning.csv"):
        assert (folder / name).read_bytes() == next(plain.rglob(name)).read_bytes()
    ours, theirs = rows(folder / "metrics.csv"), rows(next(plain.rglob("metrics.csv")))
    assert [{name: row[name] for name in theirs[0]} for row in ours] == theirs


@pytest.mark.pictures
def test_tables_and_pictures(finished):
    module, built, callback, folder, _ = finished
    by_hand = personal_accuracies(built, callback, module)
    table = rows(folder / "ood_clients.csv")
    assert [row["client_id"] for row in table] == ["0", "1", "2", "3"]
    assert [row["num_test"] for row in table] == ["5", "6", "7", "0"]
    for row in table[:3]:
        before, after = by_hand[int(row["client_id"])]
        assert float(row["acc_before"]) == pytest.approx(before)
        assert float(row["acc_after"]) == pytest.approx(after)
    assert table[3]["acc_after"] == "nan"
    curve = rows(folder / "ood_finetuning.csv")
    assert [row["num_clients"] for row in curve] == ["3"] * 4
    assert float(curve[-1]["acc_mean"]) == pytest.approx(
        mean(after for _, after in by_hand.values())
    )
    for name in ("curves.png", "finetuning.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"


def test_the_summary(finished):
    module, built, callback, _, printed = finished
    by_hand = personal_accuracies(built, callback, module)
    after = 100 * mean(after for _, after in by_hand.values())
    block = printed[printed.index("accuracy on the shifted data of 4 clients in the view ood") :]
    assert re.search(rf"after \(head\) +{after:.1f} %", block.split("\n\n")[0])
    central = f"global model  {100 * accuracy(module, *examples(40, 1000)):5.1f} %"
    assert f"accuracy on central data, which belongs to no client\n  {central}\n" in printed
    assert re.search(r"ood_clients\.csv +the same in ood", printed)


def test_the_report(finished, tmp_path):
    _, _, _, folder, _ = finished
    (folder / "config.yaml").write_text("seed_everything: 0\ntrainer: {max_epochs: 2}\n")
    assert main(["report", str(tmp_path)]) == 0
    summaries = {row["group"]: row for row in rows(tmp_path / "summary.csv")}
    assert list(summaries) == ["seen", "central", "ood", "pair"]
    logged = rows(folder / "metrics.csv")[-1]
    ood = summaries["ood"]
    assert ood["clients"] == "3"
    assert float(ood["acc_after"]) == pytest.approx(float(logged["ood/personalized/acc"]))
    assert float(ood["global_acc"]) == pytest.approx(float(logged["ood/global/acc"]))
    assert float(summaries["central"]["global_acc"]) == float(logged["central/global/acc"])
    page = (tmp_path / "report.html").read_text()
    for view in ("ood", "pair", "central"):
        assert f"Evaluation view {view}" in page
    clients = [row for row in rows(tmp_path / "clients.csv") if row["group"] == "ood"]
    assert [row["client_id"] for row in clients] == ["0", "1", "2", "3"]


def test_test_and_validation_data_are_apart_in_every_view():
    built = fit(net(), FedAvg(), datamodule=shifted(val_fraction=0.3, held_out_clients=1))
    names = set(built.callback_metrics)
    assert {"val/acc", "held_out/val/acc", "global/acc", "held_out/global/acc"} <= names
    assert {"ood/global/acc", "central/global/acc"} <= names
    assert not {"ood/val/acc", "central/val/acc"} & names


def test_a_client_that_has_such_data_alone_is_personalised():
    class Alone(Shifted):
        def num_examples(self, client, split="train"):
            return 0 if (client, split) == (1, "test") else super().num_examples(client, split)

    some = Alone(
        train=[examples(n, seed) for seed, n in enumerate(SIZES)],
        test=[examples(4, 100 + seed) for seed in range(len(SIZES))],
        num_classes=CLASSES, batch_size=4, seed=0,
    )  # fmt: skip
    callback = PersonalizationCallback(epochs=2, lr=0.2)
    fit(net(), FedBABU(), datamodule=some, callbacks=[callback])
    result = callback.results[1]
    assert not result.record.tested
    assert result.record_on("shifted").tested


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([EvaluationView("a", (0,), "x"), EvaluationView("a", (1,), "y")], "two evaluation views"),
        ([EvaluationView("a", (0,), "tset")], r"got 'tset'\. Did you mean 'test'"),
        ([EvaluationView("a", (CENTRAL,))], "no examples that belong to no client"),
    ],
)
def test_views_that_cannot_be_are_refused_before_the_first_round(views, message):
    class Wrong(ClientDatasets):
        def evaluation_views(self):
            return [*super().evaluation_views(), *views]

    some = Wrong(
        train=[examples(8, 0), examples(8, 1)], test=[examples(4, 2), examples(4, 3)],
        num_classes=CLASSES,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        fit(net(), FedAvg(), rounds=1, datamodule=some)


@pytest.mark.parametrize("name", ["val", "global", "a/b", "a b", "1st"])
def test_a_name_that_would_be_mistaken_is_refused(name):
    with pytest.raises(ConfigError, match="evaluation view"):
        EvaluationView(name, (0,))


def test_labels_outside_the_classes_are_refused_by_view_data_too():
    class Wrong(Shifted):
        def split_examples(self, client, split):
            x, y = super().split_examples(client, split)
            return x, y + CLASSES * (client == 2)

    some = Wrong(
        train=[examples(n, seed) for seed, n in enumerate(SIZES)],
        test=[examples(4, 100 + seed) for seed in range(len(SIZES))],
        num_classes=CLASSES, batch_size=4,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"client 2, shifted sample 0: label \d not in \[0, 3\)"):
        fit(net(), FedAvg(), rounds=1, datamodule=some)


def test_the_sanity_check_does_not_order_the_columns(tmp_path):
    texts = []
    for steps in (0, 2):
        folder, clients = tmp_path / str(steps), data(val_fraction=0.5, held_out_clients=1)
        fit(net(), folder=folder, datamodule=clients, num_sanity_val_steps=steps)
        texts.append(next(folder.rglob("metrics.csv")).read_text())
    assert texts[0] == texts[1]
    assert "held_out/val/loss" in texts[0]
