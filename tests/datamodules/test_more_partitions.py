import numpy as np
import pytest

from fedlightning.datamodules import (
    ExtendedDirichlet,
    FederatedArrays,
    FlowerPartition,
    NaturalIds,
    QuantitySkew,
    Sizes,
)
from fedlightning.errors import ConfigError, DataError

LABELS, TEST = np.arange(600) % 5, np.arange(100) % 5


def divided(partition, clients=10, labels=LABELS, test=TEST, seed=0):
    rng = np.random.default_rng(seed)
    parts = partition.assign(labels, test, clients, 5, rng)
    for lists, total in ((parts.train, len(labels)), (parts.test, len(test))):
        given = np.concatenate([lists[client] for client in range(clients)])
        assert len(given) == len(np.unique(given)) <= total
    return parts


def test_sizes_are_exact_and_test_data_in_proportion():
    parts = divided(Sizes([10, 20, 30]), clients=3)
    assert [len(part) for part in parts.train] == [10, 20, 30]
    assert [len(part) for part in parts.test] == [17, 33, 50]  # 100/6, 200/6, 300/6
    assert [len(part) for part in divided(Sizes(7)).train] == [7] * 10


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"per_client asks for 700 examples .*has 600"):
        divided(Sizes(70))
    with pytest.raises(ConfigError, match="has 2 sizes for num_clients=10"):
        divided(Sizes([1, 2]))


def test_quantity_skew_gives_all_examples_away_in_dirichlet_shares():
    parts = divided(QuantitySkew(0.5, min_samples=3), seed=4)
    shares = np.random.default_rng(4).dirichlet(np.full(10, 0.5))
    expected = 3 + np.diff(np.rint(np.cumsum(shares) * 570), prepend=0)
    assert [len(part) for part in parts.train] == expected.astype(int).tolist()
    assert sum(len(part) for part in parts.test) == 100


def test_a_tiny_alpha_leaves_every_client_its_least():
    sizes = sorted(len(part) for part in divided(QuantitySkew(1e-300)).train)
    assert sizes == [1] * 9 + [591]


def test_extended_dirichlet_has_exact_numbers_of_classes_and_even_holders():
    parts = divided(ExtendedDirichlet(2, alpha=0.3))
    held = [set(LABELS[part]) for part in parts.train]
    assert [len(classes) for classes in held] == [2] * 10
    assert [sum(label in classes for classes in held) for label in range(5)] == [4] * 5
    assert all(set(TEST[part]) <= held[client] for client, part in enumerate(parts.test))
    assert sum(len(part) for part in parts.train) == 600


def test_extended_dirichlet_refuses_more_classes_than_there_are():
    with pytest.raises(DataError, match="per_client=6 exceeds the 5 classes"):
        divided(ExtendedDirichlet(6, alpha=1.0))


def test_owners_are_ordered_by_number_or_by_name():
    assert NaturalIds([10, 9, 9, 101]).names == ("9", "10", "101")
    assert NaturalIds(["b", "a", "b"], min_samples=2).names == ("b",)
    assert NaturalIds([2.0, 1.0]).names == ("1", "2")


def test_test_examples_of_nobody_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="2 test examples belong to nobody who trains"):
        parts = NaturalIds(["a", "b"], ["b", "c", "c"]).assign(
            np.zeros(2), np.zeros(3), 2, 0, np.random.default_rng(0)
        )
    assert [part.tolist() for part in parts.test] == [[], [0]]


def test_a_partitioner_of_flower_divides_as_it_does_there():
    partitioners = pytest.importorskip("flwr_datasets.partitioner")
    import datasets

    def partitioner():
        return partitioners.DirichletPartitioner(
            num_partitions=4, partition_by="label", alpha=0.5, seed=3, min_partition_size=0
        )

    inputs = np.random.default_rng(0).random((200, 2), np.float32)
    labels = np.arange(200) % 4
    data = FederatedArrays(
        (inputs, labels), (inputs, labels), num_clients=4, partition=FlowerPartition(partitioner())
    )
    data.setup()
    theirs = partitioner()
    theirs.dataset = datasets.Dataset.from_dict({"row": np.arange(200), "label": labels})
    for client in range(4):
        assert data.indices(client).tolist() == theirs.load_partition(client)["row"][:]


def test_anything_else_is_not_a_partitioner():
    pytest.importorskip("flwr_datasets")
    with pytest.raises(ConfigError, match=r"must be one of flwr_datasets.partitioner, got 3"):
        FlowerPartition(3)
