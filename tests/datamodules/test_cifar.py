import os
import pickle
import pickletools

import numpy as np
import pytest
import torch

from fedlightning.core.seeding import Key, forked_generators
from fedlightning.datamodules import CIFAR10, CIFAR100, Shards
from fedlightning.datamodules.vision import cifar
from fedlightning.datamodules.vision.cifar_files import read_cifar_batch
from fedlightning.errors import DataError, EnvironmentFailure


def original(content):
    """Pickle as Python 2 did: protocol 2, and NumPy's functions under their old module name."""
    data = pickle.dumps(content, protocol=2)
    return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batch(n, key="labels", classes=10, seed=0):
    data = np.random.default_rng(seed).integers(256, size=(n, 3072)).astype(np.uint8)
    return {"batch_label": "a batch", "data": data, key: (np.arange(n) % classes).tolist()}


def write_cifar10(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(original(batch(20, seed=seed)))
    return folder


def write_cifar100(root):
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        content = batch(200, "fine_labels", 100) | {"coarse_labels": [0] * 200}
        (folder / name).write_bytes(original(content))
    return folder


def write(path, content):
    path.write_bytes(content)
    return path


def test_the_test_writes_the_original_format():
    names = {arg for op, arg, _ in pickletools.genops(original(batch(1))) if op.name == "GLOBAL"}
    assert "numpy.core.multiarray _reconstruct" in names


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_batch_is_read_as_pickle_would(tmp_path, protocol):
    content = batch(7)
    path = write(tmp_path / "data_batch_1", pickle.dumps(content, protocol=protocol))
    images, labels = read_cifar_batch(path, "labels")
    assert np.array_equal(images, content["data"].reshape(7, 3, 32, 32))
    assert labels.tolist() == content["labels"]


def test_bytes_of_python_2_strings_are_read(tmp_path):
    """Python 2 wrote the pixels as a string: opcode U, BINSTRING."""
    pixels = np.arange(3072, dtype=np.uint32).astype(np.uint8)
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff"
        b"\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + pixels.tobytes() + b"tb"
        b"U\x06labels]K\x03au."
    )
    assert np.array_equal(pickle.loads(content, encoding="latin1")["data"][0], pixels)
    images, labels = read_cifar_batch(write(tmp_path / "data_batch_1", content), "labels")
    assert np.array_equal(images.ravel(), pixels)
    assert labels.tolist() == [3]


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, exec, eval, os.mkdir, np.load, getattr])
def test_a_malicious_pickle_is_refused_and_nothing_happens(tmp_path, function):
    marker = tmp_path / "marker"
    arguments = {
        os.system: f"mkdir {marker}",
        exec: f"import os; os.mkdir({str(marker)!r})",
        eval: f"__import__('os').mkdir({str(marker)!r})",
    }
    payload = Payload(function, arguments.get(function, str(marker)))
    content = batch(2) | {"filenames": [payload]}
    path = write(tmp_path / "data_batch_1", pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=r"data_batch_1 is refused: its pickle asks for \w+\.\w+"):
        read_cifar_batch(path, "labels")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        original(batch(3))[:-200],
        pickle.dumps([1, 2]),
        pickle.dumps({"data": [1], "labels": [0]}),
        original(batch(3) | {"labels": [0, 1]}),
        original(batch(3) | {"labels": [0, 1, "2"]}),
        original(batch(3) | {"labels": None}),
        original(batch(3) | {"data": np.zeros((3, 3071), np.uint8)}),
        original(batch(3) | {"data": np.zeros((3, 3072), np.uint8, order="F")}),
        b"\x80\x02cnumpy\nndarray\n}b.",
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\nK\x01\x85Rs.",
    ],
)
def test_a_damaged_file_is_called_corrupt(tmp_path, content):
    with pytest.raises(DataError, match="data_batch_1 is corrupt"):
        read_cifar_batch(write(tmp_path / "data_batch_1", content), "labels")


@pytest.mark.parametrize("data", [np.zeros((3, 3072)), np.full((3, 3072), None)])
def test_arrays_of_anything_but_bytes_are_refused(tmp_path, data):
    path = write(tmp_path / "data_batch_1", original(batch(3) | {"data": data}))
    with pytest.raises(DataError, match="is refused: its pickle asks for the dtype"):
        read_cifar_batch(path, "labels")


def test_cifar10_joins_its_files(tmp_path):
    write_cifar10(tmp_path)
    data = CIFAR10(root=str(tmp_path), num_clients=10, partition=Shards(2), seed=0)
    data.setup()
    assert data.partition_table().sum() == 100
    assert data.partition_table("test").sum() == 20
    second = batch(20, seed=1)["data"].reshape(20, 3, 32, 32)
    assert np.array_equal(data.pooled.train.inputs[20:40].numpy(), second)


def test_cifar100_takes_the_fine_labels_and_a_flat_folder(tmp_path):
    folder = write_cifar100(tmp_path)
    data = CIFAR100(root=str(folder), num_clients=10, seed=0)
    data.setup()
    assert data.partition_table().sum(axis=0).tolist() == [2] * 100


def test_training_images_are_augmented_and_then_normalised(tmp_path):
    write_cifar10(tmp_path)
    data = CIFAR10(root=str(tmp_path), num_clients=10, seed=0)
    data.setup()
    with forked_generators(Key(0, "fit")):
        images, _ = next(data.batches(0, "train", key=Key(0, "fit")))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    pixels = (images * std + mean) * 255
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)
    black = (pixels.abs() < 1e-3).all(dim=1)
    assert black[:, :4].flatten(1).float().mean() > 0.1


def test_evaluation_images_are_normalised_only(tmp_path):
    write_cifar10(tmp_path)
    data = CIFAR10(root=str(tmp_path), num_clients=10, seed=0)
    data.setup()
    images, _ = next(data.batches(0, "train"))
    stored = data.pooled.train.inputs[data.indices(0)].float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    assert torch.equal(images, (stored - mean) / std)


def test_missing_data_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(
        DataError, match=r"CIFAR10 not found: no data_batch_1 in .*cifar-10"
    ) as error:
        CIFAR10(root=str(tmp_path)).setup()
    assert "download=true" in str(error.value)


def test_missing_data_are_downloaded_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "download", lambda name, root: write_cifar100(tmp_path))
    data = CIFAR100(root=str(tmp_path), download=True, num_clients=10)
    data.setup()
    assert data.partition_table().sum() == 200


@pytest.mark.parametrize("data_class", [CIFAR10, CIFAR100])
def test_a_failing_download_is_an_environment_failure(tmp_path, monkeypatch, data_class):
    from torchvision import datasets

    def damaged(*args, **kwargs):
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", damaged)
    with pytest.raises(EnvironmentFailure, match=r"cannot be downloaded into .*corrupted"):
        data_class(root=str(tmp_path), download=True).prepare_data()
