import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlightning.core.seeding import Key
from fedlightning.datamodules import EMNIST, MNIST, FashionMNIST, Shards
from fedlightning.datamodules.vision import mnist
from fedlightning.errors import ConfigError, DataError, EnvironmentFailure

REAL = Path("/usr/share/datasets/fashion-mnist")


def encoded(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_set(folder, names=("train", "t10k"), sizes=(30, 10), first_label=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, size in zip(names, sizes, strict=True):
        images = rng.integers(256, size=(size, 28, 28)).astype(np.uint8)
        labels = (np.arange(size) % 10 + first_label).astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(encoded(images))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(encoded(labels)))


def ready(data):
    data.setup()
    return data


@pytest.mark.parametrize("layout", ["MNIST/raw", "MNIST", ""])
def test_every_layout_is_found(tmp_path, layout):
    write_set(tmp_path / layout)
    data = ready(MNIST(root=str(tmp_path), num_clients=3))
    assert data.num_examples(0) == 10
    assert data.num_examples(0, "test") in (3, 4)


def test_images_are_scaled_and_normalised(tmp_path):
    write_set(tmp_path)
    data = ready(MNIST(root=str(tmp_path), num_clients=3))
    images, _ = next(data.batches(0, "train"))
    stored = data.pooled.train.inputs[data.indices(0)]
    assert stored.dtype == torch.uint8
    assert images.shape == (10, 1, 28, 28)
    assert torch.equal(images, (stored.float() / 255 - 0.1307) / 0.3081)


def test_normalisation_can_be_left_out(tmp_path):
    write_set(tmp_path)
    images, _ = next(ready(MNIST(str(tmp_path), normalize=False, num_clients=3)).batches(0, "test"))
    assert 0 <= images.min() <= images.max() <= 1


def test_augmentation_is_for_training_and_off_by_default(tmp_path):
    write_set(tmp_path)
    key = Key(0, "fit")
    plain = ready(MNIST(str(tmp_path), num_clients=3, seed=0))
    augmented = ready(MNIST(str(tmp_path), num_clients=3, seed=0, augment=True))
    assert torch.equal(next(plain.batches(0, "test"))[0], next(augmented.batches(0, "test"))[0])
    one, other = (next(data.batches(0, "train", key=key))[0] for data in (plain, augmented))
    assert not torch.equal(one, other)


def test_letters_begin_at_zero_and_images_stand_upright(tmp_path):
    names = "emnist-letters-train", "emnist-letters-test"
    write_set(tmp_path / "EMNIST" / "raw", names, first_label=1)
    data = ready(EMNIST(split="letters", root=str(tmp_path), num_clients=2, normalize=False))
    assert data.num_classes == 26
    assert data.pooled.train.labels.tolist() == (np.arange(30) % 10).tolist()
    stored = np.random.default_rng(0).integers(256, size=(30, 28, 28))
    assert torch.equal(data.pooled.train.inputs[4, 0], torch.from_numpy(stored[4].T).byte())


@pytest.mark.parametrize(("split", "classes"), EMNIST.classes_of.items())
def test_classes_of_an_emnist_split_are_known_at_once(split, classes):
    assert EMNIST(split=split).num_classes == classes


def test_an_unknown_emnist_split_is_refused():
    with pytest.raises(ConfigError, match=r"got 'byclas'\. Did you mean 'byclass'"):
        EMNIST(split="byclas")


def test_a_corrupt_file_is_named(tmp_path):
    write_set(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="train-images-idx3-ubyte is corrupt"):
        MNIST(str(tmp_path), num_clients=3).setup()


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write_set(tmp_path)
    labels = np.zeros(29, np.uint8)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(encoded(labels)))
    with pytest.raises(DataError, match="do not belong together"):
        MNIST(str(tmp_path), num_clients=3).setup()


def test_missing_data_are_not_downloaded_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "download", lambda *a, **k: pytest.fail("downloaded"))
    with pytest.raises(DataError, match="MNIST not found"):
        MNIST(str(tmp_path)).setup()


def test_missing_data_are_downloaded_when_asked(tmp_path, monkeypatch):
    def download(name, root, **attributes):
        write_set(Path(root) / name / "raw")

    monkeypatch.setattr(mnist, "download", download)
    assert ready(MNIST(str(tmp_path), download=True, num_clients=3)).num_examples(0) == 10


def test_present_data_are_not_downloaded_again(tmp_path, monkeypatch):
    write_set(tmp_path)
    monkeypatch.setattr(mnist, "download", lambda *a, **k: pytest.fail("downloaded"))
    MNIST(str(tmp_path), download=True, num_clients=3).prepare_data()


@pytest.mark.parametrize("data_class", [MNIST, FashionMNIST, EMNIST])
def test_a_failing_download_is_an_environment_failure(tmp_path, monkeypatch, data_class):
    from torchvision import datasets

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", offline)
    with pytest.raises(EnvironmentFailure, match=r"cannot be downloaded into .*no route to host"):
        data_class(root=str(tmp_path), download=True).prepare_data()


@pytest.mark.skipif(not REAL.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_real_fashion_mnist_is_found_without_a_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ready(FashionMNIST(num_clients=100, partition=Shards(2), seed=0))
    assert data.partition_table().sum(axis=0).tolist() == [6000] * 10
    assert data.partition_table("test").sum(axis=0).tolist() == [1000] * 10
    scaled = data.pooled.train.inputs.double() / 255
    assert float(scaled.mean()) == pytest.approx(data.mean[0], abs=5e-5)
    assert float(scaled.std()) == pytest.approx(data.std[0], abs=5e-5)


@pytest.mark.skipif(not REAL.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_another_root_does_not_fall_back_to_the_package(tmp_path):
    with pytest.raises(DataError, match="FashionMNIST not found"):
        FashionMNIST(root=str(tmp_path)).setup()
