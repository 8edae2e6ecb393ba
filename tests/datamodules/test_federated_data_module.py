import numpy as np
import pytest
import torch
from pytorch_lightning.utilities import move_data_to_device

from fedlightning.core.seeding import Key
from fedlightning.datamodules import (
    ClientTask,
    Dirichlet,
    FederatedDataModule,
    PartitionFile,
    Shards,
    TensorExamples,
)
from fedlightning.errors import DataError


class Toy(FederatedDataModule):
    """120 + 40 examples of 4 classes; an input is its own index."""

    num_classes = 4
    num_train, num_test = 120, 40
    loads = 0

    def load(self):
        self.loads += 1
        pools = (np.arange(n) for n in (self.num_train, self.num_test))
        train, test = (TensorExamples(i[:, None].astype(np.float32), i % 4) for i in pools)
        return train, test


def toy(**options):
    data = Toy(**{"num_clients": 6, "batch_size": 8, "seed": 0, **options})
    data.setup()
    return data


def seen(batches):
    return [inputs.flatten().int().tolist() for inputs, _ in batches]


def test_setup_loads_once_whatever_the_stage():
    data = toy()
    digest = data.partition_digest()
    data.setup("fit")
    data.setup("test")
    assert data.loads == 1
    assert data.partition_digest() == digest


def test_batches_hold_the_clients_own_examples():
    data = toy(partition=Shards(2))
    for client in range(6):
        batches = seen(data.batches(client, "train", key=Key(0, "fit")))
        assert sorted(index for batch in batches for index in batch) == sorted(
            data.indices(client).tolist()
        )


def test_labels_and_inputs_belong_together():
    inputs, labels = next(toy().batches(2, "train", key=Key(0, "fit")))
    assert (inputs.flatten() % 4).tolist() == labels.tolist()
    assert labels.dtype == torch.int64


def test_evaluation_is_in_stored_order_and_its_own_batch_size():
    data = toy(partition=Shards(2), eval_batch_size=15)
    indices = data.indices(1).tolist()
    assert seen(data.batches(1, "train")) == [indices[:15], indices[15:]]


def test_training_visits_in_the_epochs_order():
    data = toy()
    order = data.epoch_order(Key(0, "fit", epoch=1), 20)
    expected = data.indices(3)[order.numpy()].tolist()
    got = seen(data.batches(3, "train", key=Key(0, "fit", epoch=1)))
    assert got == [expected[:8], expected[8:16], expected[16:]]


def test_every_epoch_has_another_order():
    data = toy()
    orders = [tuple(data.epoch_order(Key(0, "fit", epoch=e), 20).tolist()) for e in range(5)]
    assert len(set(orders)) == 5


def test_an_overridden_order_is_followed():
    class Backwards(Toy):
        def epoch_order(self, key, num_examples):
            return torch.arange(num_examples).flip(0)

    data = Backwards(num_clients=6, batch_size=20, seed=0)
    data.setup()
    assert seen(data.batches(0, "train", key=Key(0, "fit"))) == [data.indices(0)[::-1].tolist()]


def test_drop_last_is_for_training_only():
    data = toy(drop_last=True, eval_batch_size=8)
    assert [len(b) for b in seen(data.batches(0, "train", key=Key(0, "fit")))] == [8, 8]
    assert [len(b) for b in seen(data.batches(0, "train"))] == [8, 8, 4]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_num_batches_is_what_batches_yields(drop_last, split):
    data = toy(drop_last=drop_last, val_fraction=0.25, batch_size=7, eval_batch_size=4)
    trained = len(list(data.batches(0, split, key=Key(0, "fit"))))
    evaluated = len(list(data.batches(0, split)))
    assert data.num_batches(0, split) == trained
    assert data.num_batches(0, split, training=False) == evaluated


def test_transform_knows_whether_it_trains():
    class Marked(Toy):
        def transform_batch(self, batch, training):
            return *batch, training

    data = Marked(num_clients=6, seed=0)
    data.setup()
    assert next(data.batches(0, "test"))[2] is False
    assert next(data.batches(0, "train", key=Key(0, "fit")))[2] is True


def test_loaders_hand_out_tasks():
    data = toy(val_fraction=0.1)
    assert list(data.train_dataloader())[1] == ClientTask(1, "train", 18)
    assert [(task.client, task.split) for task in data.val_dataloader()][:3] == [
        (0, "val"),
        (0, "test"),
        (1, "val"),
    ]
    assert len(data.test_dataloader()) == 6


def test_without_validation_data_the_test_data_are_validated_on():
    assert {task.split for task in toy().val_dataloader()} == {"test"}


def test_predictions_come_client_after_client_as_the_index_says():
    data = toy(eval_batch_size=4, partition=Dirichlet(0.5))
    loader = data.predict_dataloader()
    got = [int(value) for inputs, _ in loader for value in inputs]
    index = data.predict_index()
    assert got == index[:, 1].tolist()
    assert index[:, 0].tolist() == sorted(index[:, 0].tolist())
    assert len(list(loader)) == len(loader)


def test_prediction_batches_are_plain_tuples():
    batch = next(iter(toy().predict_dataloader()))
    assert type(batch) is tuple
    assert type(move_data_to_device(batch, torch.device("cpu"))) is tuple


def test_val_and_train_share_no_example_and_test_is_its_own():
    data = toy(val_fraction=0.25)
    for client in range(6):
        assert not set(data.indices(client)) & set(data.indices(client, "val"))
    assert data.num_examples(0) == 15
    assert data.num_examples(0, "val") == 5


def test_holding_out_moves_no_example_to_another_client():
    whole, split = toy(partition=Dirichlet(0.5)), toy(partition=Dirichlet(0.5), val_fraction=0.5)
    for client in range(6):
        parts = [*split.indices(client), *split.indices(client, "val")]
        assert sorted(parts) == sorted(whole.indices(client))


def test_the_seed_decides():
    assert toy(seed=1).partition_digest() == toy(seed=1).partition_digest()
    assert toy(seed=1).partition_digest() != toy(seed=2).partition_digest()


def test_without_a_seed_that_of_the_run_is_taken(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert toy(seed=None).partition_digest() == toy(seed=5).partition_digest()


def test_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(toy(val_fraction=0.2).batches(0, "train", key=Key(0, "fit")))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_classes_are_counted_where_none_are_declared():
    class Bare(FederatedDataModule):
        def load(self):
            pool = TensorExamples(np.zeros((9, 1)), np.arange(9) % 3)
            return pool, pool

    data = Bare(num_clients=3)
    data.setup()
    assert data.num_classes == 3


@pytest.mark.parametrize("targets", [None, np.linspace(0, 1, 12)])
def test_data_without_classes_can_be_divided(targets, tmp_path):
    class Bare(FederatedDataModule):
        def load(self):
            pool = TensorExamples(np.zeros((12, 1)), targets)
            return pool, pool

    data = Bare(num_clients=3)
    data.setup()
    assert data.num_classes == 0
    assert data.partition_table().shape == (3, 0)
    data.write_partition(tmp_path)
    header = (tmp_path / "partition.csv").read_text().split("\n")[0]
    assert header == "client_id,num_train,num_val,num_test"


def test_data_without_labels_say_so():
    class Bare(FederatedDataModule):
        def load(self):
            return TensorExamples(np.zeros((4, 1))), TensorExamples(np.zeros((4, 1)))

    data = Bare(num_clients=2)
    data.setup()
    with pytest.raises(DataError, match="Bare has no labels"):
        data.labels(0)


def test_ten_thousand_clients_are_fine():
    class Large(Toy):
        num_train = num_test = 20_000

    data = Large(num_clients=10_000, seed=0)
    data.setup()
    assert data.num_examples(9_999) == 2


def test_the_table_counts_examples_by_client_and_class():
    data = toy(partition=Shards(2))
    table = data.partition_table()
    assert table.shape == (6, 4)
    for client in range(6):
        assert table[client].tolist() == np.bincount(data.labels(client), minlength=4).tolist()
    assert data.partition_table("test").sum() == 40


def test_the_summary_is_the_modules_text():
    data = toy(partition=Shards(2))
    assert str(data) == data.partition_summary()
    assert str(Toy()) == "Toy()"
    assert data.partition_summary().splitlines()[0] == "6 clients, Shards(per_client=2), seed 0"
    assert data.partition_summary().endswith(data.partition_digest()[:12])


def test_written_partition_can_be_used_again(tmp_path):
    data = toy(partition=Dirichlet(0.5), val_fraction=0.2)
    data.write_partition(tmp_path)
    again = toy(partition=PartitionFile(str(tmp_path / "partition.json")), val_fraction=0.2)
    assert again.partition_digest() == data.partition_digest()


def test_written_table_has_a_row_a_client(tmp_path):
    toy(partition=Shards(2), val_fraction=0.25).write_partition(tmp_path)
    lines = (tmp_path / "partition.csv").read_text().splitlines()
    assert lines[0] == "client_id,num_train,num_val,num_test,class_0,class_1,class_2,class_3"
    rows = [[int(cell) for cell in line.split(",")] for line in lines[1:]]
    assert [row[0] for row in rows] == list(range(6))
    assert all(row[1] == sum(row[4:]) == 15 and row[2] == 5 for row in rows)
