"""Processes that all clients share give what processes of each stream's own would give."""

import os
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fedlightning.core.seeding import Key
from fedlightning.datamodules import DatasetExamples, FederatedDataset
from fedlightning.datamodules.examples import SampleError
from fedlightning.datamodules.reading import BatchReader, Stream
from tests.toys import fit, net, same, state

CPU = torch.device("cpu")


class Noisy(Dataset):
    """Items with a number from each global generator; the process that has read them."""

    targets = torch.arange(40) % 3

    def __len__(self):
        return 40

    def __getitem__(self, index):
        noise = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor([index, *noise], dtype=torch.float64), os.getpid()


class Counting(Dataset):
    """Reads many items at once, and says how often it was asked."""

    def __init__(self, bad=None):
        self.asked = []
        self.bad = bad

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == self.bad:
            raise OSError("torn file")
        return {"ids": [index, index], "label": index % 2}

    def __getitems__(self, rows):
        self.asked.append(list(rows))
        return [self[row] for row in rows]


def fresh(stream, workers):
    """Return what a loader of the stream's own reads, in processes started for it."""
    dataset = Noisy()
    loader = DataLoader(dataset, batch_sampler=stream.batches, num_workers=workers)
    loader.generator = torch.Generator()
    with pytest.MonkeyPatch.context() as patch:  # a base seed of our choice, which torch draws
        patch.setattr(torch.Tensor, "random_", lambda self, generator=None: self.fill_(stream.seed))
        return [inputs for inputs, _ in loader]


def read(rows):
    dataset = Noisy()
    return torch.stack([dataset[row][0] for row in rows])


def equal(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


STREAMS = [
    Stream([[0, 1], [2], [3], [4, 5], [6]], seed=11),
    Stream([[7, 8]], seed=2**40 + 5),
    Stream([[9], [10], [11], [12]], seed=13),
]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_stream_has_the_random_numbers_of_processes_of_its_own(workers):
    expected = [fresh(stream, workers) for stream in STREAMS]
    reader = BatchReader(read, workers)
    try:
        assert equal(list(reader.batches(STREAMS[0])), expected[0])
        reader.expect(iter(STREAMS))
        for stream, truth in zip(STREAMS, expected, strict=True):
            assert equal(list(reader.batches(stream)), truth)
        # the first left out, the second interrupted by the third
        reader.expect(iter(STREAMS[:2]))
        outer = reader.batches(STREAMS[0])
        first = [next(outer), next(outer)]
        assert equal(list(reader.batches(STREAMS[2])), expected[2])
        assert equal([*first, *outer], expected[0])
        # abandoned in the middle
        next(iter(reader.batches(STREAMS[0])))
        assert equal(list(reader.batches(STREAMS[1])), expected[1])
    finally:
        reader.close()


def pids_of(data, clients=4):
    keys = [Key(0, "fit", client=client) for client in range(clients)]
    data.expect(zip(range(clients), keys, strict=True))
    streams = [data.batches(c, "train", key=key) for c, key in enumerate(keys)]
    return {pid for stream in streams for _, pids in stream for pid in pids.tolist()}


def test_all_clients_share_the_processes_until_teardown():
    data = FederatedDataset(Noisy(), Noisy(), num_clients=4, batch_size=3, num_workers=2, seed=0)
    data.setup()
    assert data.reads_ahead
    once, again = pids_of(data), pids_of(data)
    assert once == again
    assert len(once) == 2
    assert os.getpid() not in once
    data.teardown("fit")
    assert pids_of(data).isdisjoint(once)
    data.teardown("fit")


def test_a_batch_is_read_at_once_where_the_dataset_can():
    dataset = Counting()
    pool = DatasetExamples(dataset, label_key="label")
    rows = torch.tensor([3, 1, 8])
    (first, second) = pool.batches(rows, 2, drop_last=False, device=CPU, key=None)
    assert dataset.asked == [[3, 1], [8]]
    assert first["label"].tolist() == [1, 1]
    assert second["ids"][0].tolist() == [8]


def test_an_item_that_fails_among_many_is_named():
    pool = DatasetExamples(Counting(bad=8), labels=[0] * 12)
    with pytest.raises(SampleError) as error:
        list(pool.batches(torch.tensor([3, 8, 1]), 3, drop_last=False, device=CPU, key=None))
    assert (error.value.index, error.value.text) == (8, "OSError: torn file")


def test_a_run_has_the_same_bits_with_processes_and_without():
    class Plain(Dataset):
        inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        targets = torch.arange(40) % 3

        def __len__(self):
            return 40

        def __getitem__(self, index):
            return self.inputs[index], int(self.targets[index])

    states = []
    for workers in (0, 2):
        options = {"num_clients": 4, "batch_size": 4, "num_workers": workers, "seed": 0}
        module = net()
        fit(
            module,
            datamodule=FederatedDataset(Plain(), Plain(), **options),
            federation={"local_steps": 4},  # one pass and a part of the second
        )
        states.append(state(module))
    assert same(*states)
