"""What a frozen backbone costs: it is loaded once, not sent, copied, counted or checkpointed."""

import csv
import gc

import pytest
import pytorch_lightning as pl
import torch

from fedlightning import Algorithm, FederatedTrainer, Federation
from fedlightning.datamodules import ClientDatasets

pytest.importorskip("transformers")
pytest.importorskip("peft")

from fedlightning.models import TransformersClassifier

HIDDEN, RANK, WORDS = 128, 2, 4000
ADAPTER = 2 * (RANK * HIDDEN + HIDDEN * RANK) * 4  # A and B of query and value, float32
HEAD = (2 * HIDDEN + 2) * 4
BACKBONE = WORDS * HIDDEN * 4  # of its word embeddings alone


def network():
    tiny = {"model_type": "bert", "vocab_size": WORDS, "hidden_size": HIDDEN,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
    lora = {"r": RANK, "target_modules": ["query", "value"]}
    return TransformersClassifier(tiny, adapters={"adapter": lora})


def clients(count):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, WORDS, (4, 3), generator=generator)
    pair = ids, torch.tensor([0, 1, 0, 1])
    return ClientDatasets([pair] * count, [pair] * count, batch_size=4)


def alive():
    """Return the bytes of all tensors that are alive."""
    found = {}
    for each in gc.get_objects():
        # other tests may leave tensors that have no memory (FakeTensor)
        real = type(each) in (torch.Tensor, torch.nn.Parameter)
        if real and each.layout == torch.strided:
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


class Growth(pl.Callback):
    """How many bytes of tensors there are more than before the run, after clients and the round."""

    def __init__(self, clients):
        self.last, self.clients = clients - 1, []

    def on_fit_start(self, trainer, module):
        gc.collect()
        self.before = alive()

    def on_client_end(self, trainer, module, update):
        if update.client in (0, self.last):
            self.clients.append(alive() - self.before)

    def on_train_epoch_end(self, trainer, module):
        gc.collect()
        self.after_round = alive() - self.before


def run(folder, count, share):
    growth = Growth(count)
    trainer = FederatedTrainer(
        federation=Federation(Algorithm(train="adapter + head", share=share), cohort_size=1.0),
        max_epochs=1, default_root_dir=folder, callbacks=[growth], limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(network(), datamodule=clients(count))
    return growth


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {count: (folder / str(count), run(folder / str(count), count, "adapter"))
            for count in (2, 12)}  # fmt: skip


@pytest.mark.parametrize("count", [2, 12])
def test_only_the_adapter_is_sent(runs, count):
    with next(runs[count][0].rglob("metrics.csv")).open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["communication/bytes_down"]) == count * ADAPTER
    assert float(row["communication/bytes_up"]) == count * ADAPTER


def test_a_checkpoint_grows_by_what_clients_keep(runs):
    sizes = {count: next(runs[count][0].rglob("last.ckpt")).stat().st_size for count in runs}
    assert sizes[2] < BACKBONE / 10
    assert sizes[12] - sizes[2] < 10 * (HEAD + 2500)  # each with a few names beside its tensors


def test_memory_grows_by_what_clients_keep(runs):
    few, many = runs[2][1], runs[12][1]
    assert 10 * HEAD <= many.after_round - few.after_round <= 10 * 2 * HEAD
    assert max(many.clients) < 12 * 4 * (HEAD + ADAPTER) < BACKBONE / 3  # not even one copy of it


def test_it_is_not_counted(runs):
    parameters = network().state_dict().values()
    assert sum(each.numel() * each.element_size() for each in parameters) == ADAPTER + HEAD
