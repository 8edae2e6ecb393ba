"""Clients as they come: tables, folders, named datasets, owners of examples."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from fedlightning.core.client_names import named_in_text, resolve_clients
from fedlightning.core.seeding import Key
from fedlightning.datamodules import (
    ClientDatasets,
    FederatedArrays,
    FederatedDataset,
    FederatedFolders,
    FederatedTable,
    GroupSplit,
    NaturalIds,
    Pad,
    RandomSplit,
    TimeSplit,
)
from fedlightning.errors import ConfigError, DataError, FederationError

pd = pytest.importorskip("pandas")


def hospitals(count=40):
    """Patient p of a hospital has two visits; the year rises with the row."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "hospital": np.where(np.arange(count) % 4 == 0, "mayo", "charite"),
        "patient": np.arange(count) // 8,
        "year": 1990 + np.arange(count),
        "age": rng.integers(20, 90, count),
        "sex": np.where(np.arange(count) % 3 == 0, "f", "m"),
        "outcome": np.where(np.arange(count) % 2 == 0, "well", "ill"),
    })  # fmt: skip


def table(frame=None, **options):
    data = FederatedTable(
        hospitals() if frame is None else frame,
        **{"client": "hospital", "label": "outcome", "categories": ["sex"], "seed": 0, **options},
    )
    data.setup()
    return data


def test_a_table_has_a_client_per_value_of_a_column():
    data = table(features=["age"])
    assert data.client_names == ("charite", "mayo")
    assert [sum(data.num_examples(c, s) for s in ("train", "test")) for c in (0, 1)] == [30, 10]
    assert data.classes == ("ill", "well")
    assert data.features == ("age", "sex=f", "sex=m")
    rows = data.indices(1, "test")
    assert (hospitals()["hospital"][rows] == "mayo").all()
    assert data.labels(1, "test").tolist() == [1] * len(rows)  # its rows are even


def test_inputs_are_standardised_over_the_training_rows_of_all_clients():
    data = table(features=["age"])
    clients = range(data.num_clients)
    trained = torch.cat([x[:, 0] for client in clients for x, _ in data.batches(client, "train")])
    assert abs(trained.mean()) < 1e-6
    assert abs(trained.std(correction=0) - 1) < 1e-6
    age = hospitals()["age"].to_numpy(float)
    scaled = data.pooled.train.inputs[:, 0].numpy()
    slope, at_zero = np.polyfit(age, scaled, 1)
    assert slope > 0
    assert np.allclose(scaled, slope * age + at_zero, atol=1e-5)


def test_a_table_is_read_from_csv_and_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    hospitals().to_csv(tmp_path / "all.csv", index=False)
    hospitals().to_parquet(tmp_path / "all.parquet")
    one, other = table(str(tmp_path / "all.csv")), table(tmp_path / "all.parquet")
    assert torch.equal(one.pooled.train.inputs, other.pooled.train.inputs)
    assert one.partition_digest() == other.partition_digest()


def test_labels_that_are_fractions_are_a_regression():
    data = table(hospitals().assign(outcome=np.linspace(0, 1, 40)))
    assert (data.num_classes, data.labels(0).dtype) == (0, np.float32)


@pytest.mark.parametrize(("change", "error", "text"), [
    ({"client": "hospitl"}, ConfigError, "client='hospitl' is not a column.*Did you mean 'hosp"),
    ({"label": "dose"}, ConfigError, "label='dose' is not a column of the table.* It has hospital"),
    ({"categories": None}, ConfigError, "column 'sex' holds .*name it in categories.* 2 values"),
    ({"num_clients": 3}, ConfigError, "num_clients follows from the column client='hospital'"),
    ({"min_samples": 31}, DataError, "no client has min_samples=31 .*the largest of 2 has 30"),
    ({"split": 0.2}, ConfigError, "split must be .*ClientSplit"),
])  # fmt: skip
def test_a_table_that_cannot_be_used_is_refused(change, error, text):
    with pytest.raises(error, match=text):
        table(**change)


def test_missing_values_are_named_by_row():
    frame = hospitals()
    frame["age"] = frame["age"].astype(float)
    frame.loc[7, "age"] = np.nan
    with pytest.raises(DataError, match="row 7 has no 'age'"):
        table(frame, features=["age"], scale=False)
    frame = hospitals().assign(outcome=[None, *(["well"] * 39)])
    with pytest.raises(DataError, match="row 0 has no 'outcome'"):
        table(frame)
    frame = hospitals().assign(hospital=[None, *(["mayo"] * 39)])
    with pytest.raises(DataError, match="example 0 has no owner"):
        table(frame)


def test_nobody_trains_on_the_future():
    data = table(split=TimeSplit("year", test=0.25), val_fraction=0.25)
    year = hospitals()["year"].to_numpy()
    assert "year" not in data.features
    for client in (0, 1):
        train, val, test = (year[data.indices(client, s)] for s in ("train", "val", "test"))
        assert train.max() < val.min()
        assert val.max() < test.min()


def test_a_patient_is_on_one_side_of_the_split():
    data = table(split=GroupSplit("patient", test=0.4), val_fraction=0.4)
    patient = hospitals()["patient"].to_numpy()
    for client in (0, 1):
        sides = [set(patient[data.indices(client, s)]) for s in ("train", "val", "test")]
        assert all(sides)
        assert sum(map(len, sides)) == len(set.union(*sides))


SPLITS = [GroupSplit("patient", test=0.3), RandomSplit(0.3), TimeSplit("year", test=0.3)]


@pytest.mark.parametrize("split", SPLITS)
def test_what_nobody_validates_on_is_trained_on(split):
    data = table(hospitals(9).assign(hospital="mayo", patient=np.arange(9) // 3), split=split)
    assert [data.num_examples(0, each) for each in ("train", "val", "test")] == [6, 0, 3]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("groups", "share"), [([7], 0.9), ([7, 7], 0.0), ([7, 8, 9], 0.0)])
def test_no_share_takes_nothing_and_no_share_takes_all(split, groups, share):
    values = np.array(groups)
    left, taken = split.divide([np.arange(len(groups))], values, share, np.random.default_rng(0))
    assert (left.sizes.tolist(), taken.sizes.tolist()) == ([len(groups)], [0])


def test_a_split_follows_the_seed():
    first, same, other = (table(seed=seed).partition_digest() for seed in (0, 0, 1))
    assert first == same != other


class Notes(Dataset):
    """Items that are mappings; the texts have several lengths."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"ids": list(range(index % 3 + 1)), "site": f"s{index % 2}", "label": index % 2}


def test_a_dataset_of_mappings_is_divided_by_one_entry_and_padded():
    data = FederatedDataset(
        Notes(), partition=NaturalIds("site"), label_key="label", input_key="ids",
        collate=Pad(value=9), batch_size=6, split=RandomSplit(0.5), seed=0,
    )  # fmt: skip
    data.setup()
    assert data.client_names == ("s0", "s1")
    ((inputs, labels),) = data.batches(1, "train", key=Key(0, "fit"))
    assert labels.tolist() == [1, 1, 1]
    assert inputs.shape[1] == max(int((row != 9).sum()) for row in inputs)


def test_several_inputs_and_labels_need_no_subclass():
    inputs = {"image": torch.rand(8, 3), "age": np.arange(8.0)}
    labels = {"digit": torch.arange(8) % 2, "weight": torch.rand(8)}
    data = FederatedArrays(
        (inputs, labels), label_key="digit", partition=NaturalIds(list("aabbaabb")), seed=0
    )
    data.setup()
    assert (data.num_classes, data.client_names) == (2, ("a", "b"))
    ((x, y),) = data.batches(1, "train", key=Key(0, "fit"))
    assert x["age"].dtype == torch.float32
    assert y["digit"].tolist() == [int(age) % 2 for age in x["age"]]
    assert y["weight"].shape == (3,)


def test_sequences_of_several_lengths_in_memory_need_a_collation_alone():
    sequences = [[1] * (n % 3 + 1) for n in range(10)]
    data = FederatedArrays(
        (sequences, [0, 1] * 5), collate=Pad(lengths=True), num_clients=2, batch_size=5, seed=0
    )
    data.setup()
    (((padded, lengths), labels),) = data.batches(0, "train", key=Key(0, "fit"))
    assert (padded.sum(dim=1) == lengths).all()
    assert len(labels) == 4


def loaders(**options):
    pairs = TensorDataset(torch.arange(12.0).view(6, 2), torch.arange(6) % 2)
    return {name: DataLoader(pairs, **{"batch_size": 3, **options}) for name in ("mayo", "ucla")}


def test_loaders_by_name_give_their_data_collation_and_batch_size():
    data = ClientDatasets(loaders(shuffle=True), loaders())
    data.setup()
    assert (data.batch_size, data.client_names) == (3, ("mayo", "ucla"))
    assert [len(y) for _, y in data.batches(1, "train", key=Key(0, "fit"))] == [3, 3]


def test_loaders_whose_order_or_size_cannot_be_kept_are_refused():
    with pytest.raises(ConfigError, match="a DataLoader has a WeightedRandomSampler"):
        ClientDatasets(loaders(sampler=WeightedRandomSampler([1.0] * 6, 6)))
    given = loaders()
    given["ucla"] = loaders(batch_size=2)["ucla"]
    with pytest.raises(ConfigError, match="the DataLoaders differ in batch_size"):
        ClientDatasets(given)


def images(root, clients, classes=("cat", "dog"), count=4):
    from PIL import Image

    for client in clients:
        for name in classes:
            (root / client / name).mkdir(parents=True)
            for at in range(count):
                Image.new("RGB", (10, 8), (at, 0, 0)).save(root / client / name / f"{at}.png")


def test_folders_have_one_list_of_classes(tmp_path):
    images(tmp_path / "train", ["north"], ["dog"])
    images(tmp_path / "train", ["south"], ["cat", "eel"])
    images(tmp_path / "test", ["north", "south"], ["cat"])
    data = FederatedFolders(tmp_path, size=(4, 5), seed=0)
    data.setup()
    assert (data.client_names, data.classes) == (("north", "south"), ("cat", "dog", "eel"))
    assert set(data.labels(1)) == {0, 2}
    ((inputs, labels),) = data.batches(0, "test")
    assert (inputs.shape, labels.tolist()) == ((4, 3, 4, 5), [0] * 4)


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        FederatedFolders(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="has no folders; it needs one per client"):
        FederatedFolders(tmp_path)
    (tmp_path / "north").mkdir()
    with pytest.raises(DataError, match="north has no folder of a class"):
        FederatedFolders(tmp_path)
    (tmp_path / "north" / "cat").mkdir()
    with pytest.raises(DataError, match="north holds no image"):
        FederatedFolders(tmp_path, seed=0).setup()
    (tmp_path / "north" / "cat" / "torn.png").write_bytes(b"\x89PNG torn")
    data = FederatedFolders(tmp_path, seed=0)
    with pytest.warns(UserWarning, match="1 of 1 clients have no test examples"):
        data.setup()
    with pytest.raises(FederationError, match="client 0, sample 0: UnidentifiedImageError"):
        list(data.batches(0, "train", key=Key(0, "fit")))


def test_a_word_that_is_a_name_means_that_client():
    assert resolve_clients(["12", "0"], ["11", "12", "13"]) == [0, 1]
    with pytest.raises(ConfigError, match=r"--clients: 'mayoo' is neither.*Did you mean 'mayo'"):
        resolve_clients(["mayoo"], ["charite", "mayo"], "--clients")
    assert named_in_text("clients 0 and client 1: x", ["a", "b"]) == "clients 0 and client 1 (b): x"
