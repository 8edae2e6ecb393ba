import numpy as np
import pytest
import torch

from fedlightning.datamodules import FederatedArrays, Shards
from fedlightning.errors import ConfigError, DataError

INPUTS, LABELS = np.random.default_rng(0).random((30, 2)), np.arange(30) % 3


def ready(train, **options):
    data = FederatedArrays(train, train, **{"num_clients": 3, "seed": 0, **options})
    data.setup()
    return data


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_tensors_are_taken_as_they_are_and_numpys_float64_becomes_torchs_default(kind):
    data = ready((kind(INPUTS), kind(LABELS)), partition=Shards(1))
    inputs, labels = next(data.batches(1, "train"))
    assert np.array_equal(inputs.numpy(), INPUTS[data.indices(1)].astype(inputs.numpy().dtype))
    assert inputs.dtype is (torch.float64 if kind is torch.as_tensor else torch.float32)
    assert labels.tolist() == LABELS[data.indices(1)].tolist()


def test_arrays_can_lie_in_npy_files(tmp_path):
    np.save(tmp_path / "x.npy", INPUTS)
    np.save(tmp_path / "y.npy", LABELS)
    data = ready([str(tmp_path / "x.npy"), str(tmp_path / "y.npy")])
    assert data.num_classes == 3


def test_arrays_can_lie_in_an_npz_file(tmp_path):
    np.savez(tmp_path / "train.npz", x=INPUTS, y=LABELS)
    assert ready(str(tmp_path / "train.npz")).num_classes == 3


def test_declared_classes_are_kept():
    assert ready((INPUTS, LABELS), num_classes=7).partition_table().shape == (3, 7)


def test_data_without_labels_are_divided_evenly():
    data = ready((INPUTS, None))
    assert next(data.batches(0, "train")).shape == (10, 2)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_pickled_array_is_refused_and_nothing_happens(tmp_path, name):
    marker = tmp_path / "marker"
    content = np.array([Payload(marker)] * 30, dtype=object)
    if name.endswith("npz"):
        np.savez(tmp_path / name, x=content, y=LABELS)
        train = str(tmp_path / name)
    else:
        np.save(tmp_path / name, content, allow_pickle=True)
        train = [str(tmp_path / name), LABELS]
    with pytest.raises(DataError, match=rf"{name} holds pickled objects, and pickle is refused"):
        ready(train)
    assert not marker.exists()


def test_a_bare_pickle_is_refused(tmp_path):
    import pickle

    marker = tmp_path / "marker"
    (tmp_path / "x.npy").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(DataError, match="pickle is refused"):
        ready([str(tmp_path / "x.npy"), LABELS])
    assert not marker.exists()


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_cut_file_is_called_corrupt(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as file:
        np.save(file, INPUTS) if name.endswith("npy") else np.savez(file, x=INPUTS, y=LABELS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{name} is corrupt"):
        ready(str(path) if name.endswith("npz") else [str(path), LABELS])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"x\.npy cannot be read: No such file"):
        ready([str(tmp_path / "x.npy"), LABELS])


def test_an_npz_file_needs_the_two_names(tmp_path):
    np.savez(tmp_path / "train.npz", images=INPUTS)
    with pytest.raises(
        DataError, match=r"train\.npz must be a \.npz file with arrays named x and y"
    ):
        ready(str(tmp_path / "train.npz"))


@pytest.mark.parametrize("train", [None, INPUTS, (INPUTS,), (INPUTS, LABELS, LABELS)])
def test_anything_but_a_pair_is_refused(train):
    with pytest.raises(ConfigError, match=r"train must be a pair \(inputs, labels\)"):
        FederatedArrays(train, (INPUTS, LABELS))
