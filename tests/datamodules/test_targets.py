"""Labels are classes or targets: it is known, or asked; missing ones are refused."""

import numpy as np
import pandas as pd
import pytest
from torch.utils.data import Dataset

from fedlightning.datamodules import (
    ClientDatasets,
    FederatedArrays,
    FederatedDataset,
    FederatedTable,
)
from fedlightning.errors import ConfigError, DataError


def table(label, **options):
    frame = pd.DataFrame({"site": ["a", "b"] * (len(label) // 2), "x": 1.5, "y": label})
    data = FederatedTable(frame, client="site", label="y", seed=0, **options)
    data.setup()
    return data


AGES = list(range(18, 58))


def test_whole_numbers_that_may_be_either_are_asked_for():
    with pytest.raises(ConfigError, match="40 different whole numbers, 18 to 57: say regression="):
        table(AGES)
    data = table(AGES, regression=True)
    assert (data.num_classes, data.labels(0).dtype, data.classes) == (0, np.float32, ())
    assert sorted(np.concatenate([data.labels(0), data.labels(0, "test")])) == AGES[::2]
    data = table(AGES, regression=False)
    assert (data.num_classes, data.classes[0]) == (40, "18")


def test_what_a_column_holds_and_what_is_said_of_it_have_to_agree():
    assert table([1, 2] * 10).classes == ("1", "2")
    assert table([1, 2] * 10, regression=True).labels(0).tolist() == [1.0] * 8
    assert table([0.0, 1.0] * 10).num_classes == 0
    assert table([0.0, 1.0] * 10, regression=False).num_classes == 2
    assert table(pd.array([3, 4] * 10, "Int64"), regression=True).labels(1).tolist() == [4.0] * 8
    with pytest.raises(ConfigError, match=r"'y' has fractions, such as 0.5, which are not classes"):
        table([0.5, 1.0] * 10, regression=False)
    with pytest.raises(
        ConfigError, match="'y' holds text, not numbers, so it cannot be the target"
    ):
        table(["no", "yes"] * 10, regression=True)


def test_labels_that_would_be_more_classes_than_examples_are_refused():
    prices = np.arange(20) * 10_000
    with pytest.raises(DataError, match=r"whole numbers up to 190,000, .* make them floats"):
        FederatedArrays((np.zeros((20, 2)), prices), num_clients=2).setup()


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_a_row_without_a_label_is_refused(missing, tmp_path):
    label = pd.Series([*["no", "yes"] * 9, "no", missing], dtype=object)
    with pytest.raises(DataError, match=r"^row 19 has no 'y' \(1 of 20 rows"):
        table(label)
    frame = pd.DataFrame({"site": "a", "x": 1.5, "y": label})
    frame.to_csv(tmp_path / "a.csv", index=False)
    data = FederatedTable(tmp_path / "a.csv", client="site", label="y")
    with pytest.raises(DataError, match=r"a\.csv: row 19 has no 'y'.*NA, null and None mean"):
        data.setup()


def test_a_target_that_is_missing_is_refused():
    with pytest.raises(DataError, match="row 3 has no 'y'"):
        table([0.5, 1.5, 2.5, float("nan")] * 5)


class Items(Dataset):
    def __init__(self, labels):
        self.given = labels

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        return np.zeros(2, np.float32), self.given[index]


@pytest.mark.parametrize(("labels", "text"), [
    ([0, 1, None, 1] * 5, "example 2 has no label"),
    ([0.5, 1.5, float("nan"), 2.5] * 5, "sample [26].*label nan: missing, or not finite"),
])  # fmt: skip
def test_items_without_a_label_are_refused(labels, text):
    with pytest.raises(DataError, match=text):
        FederatedDataset(Items(labels), num_clients=1, seed=0).setup()
    zeros = np.zeros((20, 2))
    pair = zeros, [type(labels[0])(0)] * 20
    with pytest.raises(DataError, match=r"^client 1 \(b\)(, (test )?sample \d+)?: "):
        ClientDatasets({"a": pair, "b": (zeros, labels)}, seed=0).setup()


def texts(label, **options):
    datasets = pytest.importorskip("datasets")
    from fedlightning.datamodules import FederatedText

    rows = {"site": ["a", "b"] * (len(label) // 2), "text": ["hi"] * len(label), "y": label}
    data = FederatedText(
        datasets.Dataset.from_dict(rows), label="y", client="site", seed=0, **options
    )
    data.setup()
    return data


def test_labels_of_texts():
    data = texts(["neg", "pos"] * 10)
    assert (data.classes, data.num_classes) == (("neg", "pos"), 2)
    assert next(data.batches(1, "test"))[1].tolist() == [1] * 2
    with pytest.raises(ConfigError, match="40 different whole numbers"):
        texts(AGES)
    data = texts(AGES, regression=True)
    assert (data.num_classes, str(next(data.batches(0, "test"))[1].dtype)) == (0, "torch.float32")
    assert texts([0, 1] * 10).num_classes == 2
    with pytest.raises(DataError, match="row 7 has no 'y'"):
        texts([0, 1, 0, 1, 0, 1, 0, None] * 3)
    with pytest.raises(DataError, match="row 7 has no 'y'"):
        texts(["a", "b", "a", "b", "a", "b", "a", " "] * 3)


def test_a_row_without_text_is_refused(tmp_path):
    pytest.importorskip("datasets")
    from fedlightning.datamodules import FederatedText

    (tmp_path / "a.jsonl").write_text('{"site": "a", "text": "hi"}\n{"site": "a", "text": null}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: row 1 has no 'text'"):
        FederatedText(str(tmp_path / "a.jsonl"), client="site")
