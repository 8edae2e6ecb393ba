"""Objects in the words of a config: what is said, what is only named, what is never said."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import weakref

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn

from fedlightning import FedBABU, FederatedModule, Federation, FedProx, PersonalizationCallback
from fedlightning.core import description
from fedlightning.core.description import described, missing_in
from fedlightning.datamodules import ClientDatasets, Digits, Shards
from fedlightning.federation.uplink import FixedPoint
from tests.toys import data


class Saves(pl.LightningModule):
    def __init__(self, width=3, rate=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.width = 2 * width  # not what it was given


class SavesHalf(pl.LightningModule):
    def __init__(self, width=3, rate=0.1):
        super().__init__()
        self.save_hyperparameters("width")


class Mine(FederatedModule):
    def __init__(self, width, activation=None):
        super().__init__(lr=0.5)
        self.body, self.head = nn.Linear(2, width), nn.Linear(width, 2)


def test_what_an_object_was_given_counts_not_what_it_holds():
    said = described(Saves(width=4))
    assert said["init_args"] == {"width": 4, "rate": 0.1}
    assert described(Mine(7))["init_args"] == {"width": 7, "activation": None}
    assert described(Digits(0.5, batch_size=3))["init_args"]["batch_size"] == 3


def test_an_argument_that_a_module_does_not_save_is_missing():
    [(key, what)] = missing_in({"model": described(SavesHalf(width=4))})
    assert key == "model.rate"
    assert "save_hyperparameters" in what


def test_a_class_that_no_other_process_can_import_is_missing():
    class Local(FederatedModule):
        def __init__(self):
            super().__init__()

    assert list(missing_in({"model": described(Local())})) == [
        ("model", "the class Local of a function")
    ]


def test_settings_within_settings_are_said_with_their_defaults_or_without():
    both = FedBABU() + FedProx(mu=0.25)
    whole, brief = described(both), described(both, whole=False)
    assert [each["class_path"] for each in whole["init_args"]["algorithms"]] == [
        "fedlightning.FedBABU", "fedlightning.FedProx",
    ]  # fmt: skip
    assert whole["init_args"]["algorithms"][0]["init_args"]["weights"] == "uniform"
    assert "train" not in whole["init_args"]["algorithms"][0]["init_args"]  # FedBABU's own choice
    assert brief["init_args"]["algorithms"][0]["init_args"] == {}
    assert brief["init_args"]["algorithms"][1]["init_args"] == {"mu": 0.25}


def test_examples_in_memory_are_counted_and_not_kept():
    x = torch.ones(3, 4)
    clients = ClientDatasets(train=[(x, [0, 1, 0])] * 2, test=[(x, [0, 1, 0])] * 2, num_classes=2)
    said = described(clients)["init_args"]
    assert said["train"] == "<only in Python: a list of 2 tuples>"
    assert said["num_classes"] == 2


def test_a_note_goes_with_its_object():
    before = len(description._noted)
    one = Shards(2)
    assert len(description._noted) == before + 1
    del one
    gc.collect()
    assert len(description._noted) <= before


def test_notes_do_not_keep_what_they_are_of():
    clients = data()
    seen = weakref.ref(clients)
    del clients
    gc.collect()
    assert seen() is None


def test_equality_repr_and_copies_are_what_they_were():
    assert repr(Shards(2)) == "Shards(per_client=2)"
    assert FixedPoint(4) == FixedPoint(4) == copy.deepcopy(FixedPoint(4))
    assert pickle.loads(pickle.dumps(FixedPoint(4))) == FixedPoint(4)
    assert Federation(cohort_size=3) == copy.deepcopy(Federation(cohort_size=3))
    assert vars(Shards(2)) == {"per_client": 2}


def test_a_copy_is_said_as_its_attributes_tell():
    for again in (copy.deepcopy(Shards(3)), pickle.loads(pickle.dumps(Shards(3)))):
        assert described(again)["init_args"] == {"per_client": 3}
    module = copy.deepcopy(Mine(7))  # keeps neither of its arguments
    assert {key for key, _ in missing_in({"model": described(module)})} >= {"model.width"}


@pytest.mark.parametrize("name", [
    "password", "passphrase", "pwd", "db_pwd", "client_secret", "api_key", "api_keys",
    "private_key", "token", "hf_token", "auth_token", "access_token", "api_token",
    "backend_token", "data.token",
])  # fmt: skip
@pytest.mark.parametrize("value", ["hunter2", ["hunter2"], {"ann": "hunter2"}])
def test_secrets_are_not_said(name, value):
    said = described({name: value, "split": "train"})
    assert said == {name: "<only in Python: a secret>", "split": "train"}


@pytest.mark.parametrize("name", [
    "pad_token", "mask_token", "unk_token", "eos_token", "bos_token", "cls_token", "sep_token",
    "start_token", "end_token", "stop_token", "tokenizer_pad_token", "model.pad_token",
])  # fmt: skip
def test_special_tokens_of_a_tokenizer_are_said(name):
    given = {name: "[PAD]", "additional_special_tokens": ["<img>"]}
    assert described(given) == given


def test_a_number_called_token_is_no_secret_and_urls_lose_their_user():
    assert described({"pad_token": 3}) == {"pad_token": 3}
    assert described("https://ann:hunter2@host/x") == "https://host/x"


def test_what_has_a_path_is_its_path():
    sgd = functools.partial(torch.optim.SGD, lr=0.5)
    assert described(sgd) == {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    assert described(torch.optim.Adam) == "torch.optim.Adam"
    assert described(lambda x: x).startswith("<only in Python: function")
    assert described(np.float64(0.5)) == 0.5


def test_callbacks_are_said_as_a_config_has_them():
    said = described(EarlyStopping("val/acc", mode="max", patience=4, min_delta=0.25))
    assert said["class_path"] == "pytorch_lightning.callbacks.EarlyStopping"
    chosen = {"monitor": "val/acc", "mode": "max", "patience": 4, "min_delta": 0.25}
    assert chosen.items() <= said["init_args"].items()
    chosen = described(PersonalizationCallback(epochs=2, lr=0.5))["init_args"]
    assert (chosen["epochs"], chosen["lr"], chosen["momentum"]) == (2, 0.5, 0.9)


def test_long_lists_and_deep_values_are_named_alone():
    assert described(list(range(2000))) == "<only in Python: a list of 2,000 ints>"
    deep: list = []
    deep.append(deep)
    assert "only in Python" in str(described(deep))
