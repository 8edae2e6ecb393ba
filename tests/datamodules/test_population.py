import json

import numpy as np
import pytest

from fedlightning import FedAvg, PersonalizationCallback
from fedlightning.datamodules import IID, Dirichlet, FederatedArrays, PartitionFile, Shards
from fedlightning.datamodules.client_roles import evaluated_clients
from fedlightning.errors import ConfigError, DataError
from tests.toys import data, fit, net

MANY = 10_001


def arrays(num_clients, **options):
    inputs, labels = np.zeros((3 * MANY, 4), np.float32), np.arange(3 * MANY) % 3
    made = FederatedArrays((inputs, labels), (inputs, labels), num_clients=num_clients, **options)
    made.setup()
    return made


def test_everybody_is_evaluated_in_a_population_of_usual_size():
    assert evaluated_clients(10_000, None, seed=0) == range(10_000)


def test_of_very_many_clients_a_sample_is_evaluated_and_a_warning_says_so():
    with pytest.warns(UserWarning, match=r"10,001 clients: .* 1,000 of them.*data\.eval_clients"):
        sample = evaluated_clients(MANY, None, seed=0)
    assert len(set(sample)) == 1000
    assert sample == sorted(sample)
    assert sample[-1] > 9_900


def test_the_sample_is_a_function_of_the_seed():
    assert evaluated_clients(100, 5, 0) == evaluated_clients(100, 5, 0)
    assert evaluated_clients(100, 5, 0) != evaluated_clients(100, 5, 1)


def test_asking_for_all_gives_all():
    assert evaluated_clients(MANY, MANY, seed=0) == range(MANY)


def test_more_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="eval_clients=5 exceeds the number of clients: 4"):
        evaluated_clients(4, 5, seed=0)


def test_evaluation_personalization_and_prediction_take_the_same_sample():
    clients = data((8, 6, 7, 5), eval_clients=2, seed=0)
    personal = PersonalizationCallback(epochs=1)
    fit(net(), FedAvg(), callbacks=[personal], datamodule=clients)
    chosen = list(clients.evaluated_clients)
    assert [task.client for task in clients.val_dataloader()] == chosen
    assert [record.client_id for record in personal.records] == chosen
    assert sorted(set(clients.predict_index()[:, 0].tolist())) == chosen
    assert len(list(clients.predict_dataloader())) == len(clients.predict_dataloader()) == 2


def test_training_is_everybodys():
    clients = data((8, 6, 7, 5), eval_clients=2)
    clients.setup()
    assert len(clients.train_dataloader()) == 4


@pytest.mark.parametrize("partition", [IID(), Shards(3)])
def test_files_about_very_many_clients_stay_small(partition, tmp_path):
    arrays(MANY, partition=partition, seed=0).write_partition(tmp_path)
    assert len((tmp_path / "partition.csv").read_text().splitlines()) == 1 + 1000
    facts = json.loads((tmp_path / "partition.json").read_text())
    assert facts["num_clients"] == MANY
    assert "train" not in facts
    with pytest.raises(DataError, match=r"lists no indices.*save_partition\(path\)"):
        arrays(MANY, partition=PartitionFile(str(tmp_path / "partition.json")))


def test_the_whole_partition_is_written_on_request(tmp_path):
    whole = arrays(MANY, seed=0)
    whole.save_partition(tmp_path / "all.json")
    again = arrays(MANY, partition=PartitionFile(str(tmp_path / "all.json")))
    assert again.partition_digest() == whole.partition_digest()


def test_the_table_can_be_that_of_the_first_clients():
    clients = arrays(6, partition=Shards(2), seed=0)
    assert clients.partition_table(clients=2).tolist() == clients.partition_table()[:2].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("partition", [IID(), Shards(1), Dirichlet(0.5, min_samples=1)])
def test_a_million_clients_divide_a_million_examples(partition):
    inputs, labels = np.zeros((1_000_000, 1), np.float32), np.arange(1_000_000) % 10
    clients = FederatedArrays(
        (inputs, labels), (inputs[:0], labels[:0]), num_clients=1_000_000, partition=partition
    )
    with pytest.warns(UserWarning, match="1000000 of 1000000 clients have no test examples"):
        clients.setup()
    assert clients.num_examples(999_999) == 1
    assert clients.client_data.splits.train.flat.nbytes == 4_000_000
