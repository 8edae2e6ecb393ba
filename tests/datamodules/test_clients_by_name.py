"""Clients by name: arrays, mappings of arrays, datasets and loaders, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fedlightning.core.seeding import Key
from fedlightning.datamodules import LEAF, ClientDatasets, Pad
from fedlightning.errors import ConfigError, DataError

X = np.arange(12.0).reshape(6, 2)
Y = np.arange(6) % 2
AGE = np.arange(6.0)


class Items(Dataset):
    """Items that are mappings with two inputs."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"x": torch.tensor(X[index]), "age": torch.tensor(AGE[index]), "y": int(Y[index])}


def batch(parts, client=1, **options):
    options = {"batch_size": 6, "seed": 0, **options}
    data = ClientDatasets(parts, parts, **options)
    data.setup()
    (made,) = data.batches(client, "test")
    return data, made


PAIRS = {
    "arrays": (X, Y),
    "tensors": (torch.tensor(X), torch.tensor(Y)),
    "lists": (X.tolist(), Y.tolist()),
    "dataset": TensorDataset(torch.tensor(X), torch.tensor(Y)),
    "loader": DataLoader(TensorDataset(torch.tensor(X), torch.tensor(Y)), batch_size=6),
    "items": [(x, int(y)) for x, y in zip(torch.tensor(X), Y, strict=True)],
}


@pytest.mark.parametrize("one", PAIRS)
@pytest.mark.parametrize("other", PAIRS)
def test_every_kind_goes_with_every_other(one, other):
    data, (x, y) = batch({"a": PAIRS[one], "b": PAIRS[other]})
    assert data.client_names == ("a", "b")
    assert data.num_classes == 2
    assert torch.equal(x.double(), torch.tensor(X))
    assert y.tolist() == Y.tolist()
    ((x, y),) = data.batches(0, "train", key=Key(0, "fit"))
    assert sorted(x[:, 0].tolist()) == X[:, 0].tolist()
    assert (x[:, 0].long() // 2 % 2 == y).all()


SEVERAL = {
    "mapping of inputs": ({"x": X, "age": AGE}, Y),
    "arrays by name": {"x": X, "age": AGE, "y": Y},
    "dataset of mappings": Items(),
    "items": [Items()[n] for n in range(6)],
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_inputs(kind):
    keys = {} if kind == "mapping of inputs" else {"input_key": ["x", "age"], "label_key": "y"}
    data, (x, y) = batch({"a": SEVERAL[kind], "b": SEVERAL[kind]}, **keys)
    assert data.num_classes == 2
    assert torch.equal(x["x"].double(), torch.tensor(X))
    assert x["age"].tolist() == AGE.tolist()
    assert y.tolist() == Y.tolist()


def test_several_labels_and_tuples():
    part = (X, AGE), {"even": Y, "dose": AGE}
    data, (x, y) = batch([part, part], label_key="even")
    assert data.num_classes == 2
    assert x[1].tolist() == AGE.tolist()
    assert y["dose"].tolist() == AGE.tolist()
    _, (x, y) = batch([part, part], label_key="even", collate=torch.utils.data.default_collate)
    assert x[1].tolist() == AGE.tolist()
    assert y["even"].tolist() == Y.tolist()


def test_arrays_by_name_need_the_label_alone():
    _, (x, y) = batch({"a": {"x": X, "y": Y}, "b": {"x": X, "y": Y}}, label_key="y")
    assert torch.equal(x.double(), torch.tensor(X))
    assert y.tolist() == Y.tolist()
    _, x = batch({"a": {"x": X}, "b": {"x": X}}, input_key="x")
    assert torch.equal(x.double(), torch.tensor(X))


def test_two_items_are_not_a_pair():
    items = [{"x": X[n], "y": int(Y[n])} for n in range(2)]
    data, (_, y) = batch([items, items], input_key="x", label_key="y")
    assert data.num_examples(0, "test") == 2
    assert y.tolist() == [0, 1]


def test_sequences_of_several_lengths_from_a_loader():
    pairs = [([1] * (n + 1), n % 2) for n in range(4)]
    loader = DataLoader(pairs, batch_size=4, collate_fn=Pad(), drop_last=True)
    data = ClientDatasets({"a": loader, "b": loader}, {"a": loader, "b": loader}, seed=0)
    data.setup()
    assert (data.batch_size, data.drop_last) == (4, True)
    ((x, _),) = data.batches(0, "test")
    assert x.sum(dim=1).tolist() == [1, 2, 3, 4]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(("part", "text"), [
    ({"x": X, "y": Y}, r"a mapping with x, y is neither .*: name data.input_key and"),
    (pd.DataFrame({"x": AGE}), "a DataFrame is a table: .*FederatedTable"),
    (Stream(), "Stream is neither a map-style dataset nor a pair"),
    ((X, Y[:4]), "6 inputs, but 4 labels"),
    ((X, ["a"] * 6), "labels are not numbers"),
    ((X, Y + 0.5), "labels are float64, but those of client 0 .a. are int64"),
    ((X[:, :1], Y), "inputs of shape"),
    (({"x": X}, Y), "inputs .*x: float.*, but client 0 .a. has float"),
])  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_client(part, text):
    first = (torch.tensor(X).float(), Y) if isinstance(part, tuple) else (X, Y)
    with pytest.raises(DataError, match=rf"^client 1 \(b\): {text}"):
        ClientDatasets({"a": first, "b": part}).setup()


def test_arrays_by_name_that_lack_one():
    with pytest.raises(DataError, match=r"'age' is not among its arrays, which are x, y"):
        batch({"a": {"x": X, "y": Y}}, input_key=["x", "age"], label_key="y", client=0)
    with pytest.raises(ConfigError, match="a client whose name is blank"):
        ClientDatasets({"": (X, Y)})


def leaf(root, part, **files):
    (root / part).mkdir()
    for name, users in files.items():
        found = {user: {"x": [[0.0], [1.0]], "y": [0, 1]} for user in users}
        text = json.dumps({"users": users, "num_samples": [2] * len(users), "user_data": found})
        (root / part / f"{name}.json").write_text(text)


def test_a_user_of_leaf_in_two_files_is_refused(tmp_path):
    leaf(tmp_path, "train", one=["f1", "f2"], two=["f2"])
    with pytest.raises(DataError, match=r"user 'f2' is in .*one\.json and in .*two\.json"):
        LEAF(tmp_path)


def test_users_of_leaf_who_do_not_train_are_named(tmp_path):
    leaf(tmp_path, "train", one=["f1"])
    leaf(tmp_path, "test", one=["f1", "f2"])
    with pytest.warns(UserWarning, match="1 users have test examples and none .*: f2"):
        assert LEAF(tmp_path).client_names == ("f1",)
