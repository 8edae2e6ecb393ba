"""A run is not resumed on data that have changed since."""

import numpy as np
import pandas as pd
import pytest

from fedlightning import FedAvg, FederatedTrainer, Federation
from fedlightning.datamodules import ClientDatasets, FederatedFolders, FederatedTable
from fedlightning.errors import CheckpointError
from fedlightning.models import MLP


def fit(data, root, rounds, ckpt=None, features=1):
    trainer = FederatedTrainer(
        federation=Federation(FedAvg(), cohort_size=1.0, seed=0), max_epochs=rounds,
        default_root_dir=root, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(MLP(in_features=features, num_classes=2), datamodule=data, ckpt_path=ckpt)
    return trainer


def table(rows, path):
    rows.to_csv(path, index=False)
    return FederatedTable(path, client="site", label="y", features=["x"], seed=0)


ROWS = pd.DataFrame({
    "site": ["mayo", "ucla"] * 20, "x": np.arange(40) / 7, "y": ["no", "no", "yes", "yes"] * 10,
})  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    fit(table(ROWS, root / "a.csv"), root, 1)
    return next(root.rglob("last.ckpt"))


def swapped(rows):
    order = np.arange(len(rows))
    order[[0, 4]] = 4, 0  # of one client and one class
    return rows.iloc[order]


@pytest.mark.parametrize(("change", "what"), [
    (lambda rows: pd.concat([rows, rows.iloc[:2]]), "partition"),
    (lambda rows: rows.iloc[::-1], "partition"),
    (swapped, "dataset"),
    (lambda rows: rows.assign(x=rows["x"].where(rows.index != 17, 9.0)), "dataset"),
    (lambda rows: rows.replace("mayo", "mayo clinic"), "names of clients"),
    (lambda rows: rows.replace("mayo", "zurich"), "partition"),
])  # fmt: skip
def test_a_table_that_has_changed_is_noticed(change, what, checkpoint, tmp_path):
    data = table(change(ROWS), tmp_path / "b.csv")
    with pytest.raises(CheckpointError, match=rf"data or settings differ from .*{what}.*: \w+ -> "):
        fit(data, checkpoint.parents[3], 2, str(checkpoint))


def test_the_same_table_at_another_place_is_the_same(checkpoint, tmp_path):
    data = table(ROWS, tmp_path / "c.csv")
    assert fit(data, tmp_path, 2, str(checkpoint)).current_epoch == 2


def changed(first, second):
    for data in (first, second):
        data.setup()
    one, other = first.digests(), second.digests()
    return {name for name in one | other if one.get(name) != other.get(name)}


def test_inputs_by_name_and_sequences():
    def data(value, **options):
        inputs = {"x": np.full((6, 2), value), "age": np.arange(6.0)}
        return ClientDatasets({"a": (inputs, [0, 1] * 3)}, seed=0, **options)

    assert changed(data(1.0), data(1.0)) == set()
    assert changed(data(1.0), data(2.0)) == {"dataset (inputs)"}

    def sequences(value):
        items = [[value] * (n + 1) for n in range(6)]
        return ClientDatasets({"a": (items, [0, 1] * 3)}, seed=0, collate=list)

    assert changed(sequences(1), sequences(1)) == set()
    assert changed(sequences(1), sequences(2)) == {"dataset (inputs)"}


def test_a_folder_in_which_a_file_was_replaced(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    place = tmp_path / "mayo" / "cat"
    place.mkdir(parents=True)
    for at in range(4):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(place / f"{at}.png")
    first = FederatedFolders(tmp_path, seed=0)
    first.setup()
    before = first.digests()
    Image.new("RGB", (8, 8)).save(place / "2.png")
    second = FederatedFolders(tmp_path, seed=0)
    second.setup()
    assert {n for n in before if second.digests()[n] != before[n]} == {"dataset (inputs)"}


def test_texts_that_have_changed():
    datasets = pytest.importorskip("datasets")
    from fedlightning.datamodules import FederatedText

    def data(word):
        rows = {"site": ["a", "b"] * 10, "text": ["hi"] * 19 + [word]}
        return FederatedText(datasets.Dataset.from_dict(rows), client="site", seed=0)

    assert changed(data("hi"), data("hi")) == set()
    assert changed(data("hi"), data("ho")) == {"dataset (inputs)"}
