import os

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from fedlightning.core.seeding import Key, forked_generators
from fedlightning.datamodules import DatasetExamples, FederatedArrays, FederatedDataset, Shards
from fedlightning.datamodules.examples import SampleError
from fedlightning.errors import ConfigError, DataError, FederationError

CPU = torch.device("cpu")
INPUTS, LABELS = torch.arange(48.0).view(24, 2), torch.arange(24) % 4


class Broken(Dataset):
    """Raises for one item, like a file that cannot be decoded."""

    def __init__(self, bad=5):
        self.bad = bad

    def __len__(self):
        return 24

    def __getitem__(self, index):
        if index == self.bad:
            raise ValueError("no image in this file")
        return INPUTS[index], int(LABELS[index])


class Labelled(Broken):
    def __init__(self, **labels):
        super().__init__()
        vars(self).update(labels)


class Noisy(Dataset):
    targets = LABELS

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return INPUTS[index] + torch.rand(2), int(LABELS[index])


def batches(pool, rows, num=3, key=None):
    return list(pool.batches(torch.tensor(rows), num, drop_last=False, device=CPU, key=key))


def same(one, other):
    return all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_loader_gives_what_tensors_give(num_workers):
    options = {"num_clients": 4, "batch_size": 4, "partition": Shards(2), "seed": 1}
    pairs = TensorDataset(INPUTS, LABELS)
    lazy = FederatedDataset(pairs, pairs, num_workers=num_workers, **options)
    eager = FederatedArrays((INPUTS, LABELS), (INPUTS, LABELS), **options)
    lazy.setup()
    eager.setup()
    key = Key(1, "fit", round=2, client=3)
    for split, used in (("train", key), ("test", None)):
        assert same(lazy.batches(3, split, key=used), eager.batches(3, split, key=used))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize("name", ["targets", "labels"])
def test_labels_are_found_beside_the_items(kind, name):
    dataset = Labelled(**{name: kind(LABELS.tolist())})
    assert DatasetExamples(dataset).labels.tolist() == LABELS.tolist()


def test_labels_that_are_given_win():
    dataset = Labelled(targets=[9] * 24)
    assert DatasetExamples(dataset, labels=LABELS).labels.tolist() == LABELS.tolist()


def test_labels_are_found_inside_subsets_and_chains():
    subset = Subset(Labelled(targets=LABELS), [5, 6])
    chain = ConcatDataset([subset, Labelled(labels=LABELS[:24])])
    assert DatasetExamples(chain).labels.tolist() == [1, 2, *LABELS.tolist()]


def test_labels_are_read_where_they_are_only_in_the_items():
    assert DatasetExamples(Broken(bad=None)).labels.tolist() == LABELS.tolist()


def test_items_without_a_label_have_none():
    assert DatasetExamples(TensorDataset(INPUTS)).labels is None


def test_items_of_another_structure_pass_through():
    class Tokens(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"ids": torch.tensor([index, index])}

    (batch,) = batches(DatasetExamples(Tokens()), [3, 1])
    assert batch["ids"].tolist() == [[3, 3], [1, 1]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_failing_item_keeps_its_type_and_text(num_workers):
    pool = DatasetExamples(Broken(), labels=LABELS, num_workers=num_workers)
    with pytest.raises(SampleError) as error:
        batches(pool, [1, 5, 2])
    assert (error.value.index, error.value.text) == (5, "ValueError: no image in this file")


def test_a_failing_item_is_reported_with_its_client():
    data = FederatedDataset(Broken(), Broken(None), num_clients=4, train_labels=LABELS, seed=0)
    data.setup()
    client = data.pooled.splits.owner("train", 5)
    with pytest.raises(
        FederationError, match=f"client {client}, sample 5: ValueError: no image in this file"
    ):
        list(data.batches(client, "train", key=Key(0, "fit")))


def test_an_item_that_fails_while_labels_are_read_is_reported_with_its_client():
    data = FederatedDataset(Broken(), Broken(None), num_clients=4, seed=0)
    with pytest.raises(FederationError, match=r"client \d, sample 5: ValueError: no image"):
        data.setup()


def test_items_that_cannot_be_stacked_are_reported_with_their_client():
    class IndexLists(Labelled):
        def __getitem__(self, index):
            return torch.zeros(index), 0

    ragged = IndexLists(targets=LABELS)
    data = FederatedDataset(ragged, ragged, num_clients=4, seed=0)
    data.setup()
    with pytest.raises(FederationError, match="client 2: RuntimeError: stack expects"):
        list(data.batches(2, "train", key=Key(0, "fit")))


def test_a_worker_that_dies_is_reported_with_its_client():
    class Deadly(Labelled):
        def __getitem__(self, index):
            os._exit(3)

    deadly = Deadly(targets=LABELS)
    data = FederatedDataset(deadly, deadly, num_clients=4, num_workers=1, seed=0)
    data.setup()
    with pytest.raises(FederationError, match="client 2: RuntimeError: DataLoader worker"):
        list(data.batches(2, "train", key=Key(0, "fit")))


def test_reading_leaves_the_global_generator_alone():
    pool = DatasetExamples(TensorDataset(INPUTS, LABELS))
    before = torch.get_rng_state()
    batches(pool, [0, 1, 2], key=Key(0, "fit"))
    assert torch.equal(before, torch.get_rng_state())


def test_what_a_worker_draws_depends_on_the_key_alone():
    pool = DatasetExamples(Noisy(), num_workers=1)
    key = Key(0, "fit", client=1)
    torch.rand(3)
    one = batches(pool, [0, 1], key=key)
    torch.rand(5)
    assert same(one, batches(pool, [0, 1], key=key))
    assert not same(one, batches(pool, [0, 1], key=key.at(epoch=1)))


def test_what_an_item_draws_in_this_process_follows_the_seeded_generators():
    pool = DatasetExamples(Noisy())
    drawn = []
    for _ in range(2):
        with forked_generators(Key(0, "fit")):
            drawn.append(batches(pool, [0, 1], key=Key(0, "fit")))
    assert same(*drawn)


def test_a_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(DataError, match="Stream is not a map-style dataset"):
        DatasetExamples(Stream())


def test_another_number_of_labels_is_refused():
    with pytest.raises(DataError, match="24 examples, but 3 labels"):
        DatasetExamples(Broken(), labels=[0, 1, 2])


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(ConfigError, match="num_workers must be an integer >= 0, got -1"):
        DatasetExamples(Broken(), labels=LABELS, num_workers=-1)
