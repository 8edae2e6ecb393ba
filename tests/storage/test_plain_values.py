"""A checkpoint holds plain values, whatever the hyperparameters were."""

from __future__ import annotations

import io
from argparse import Namespace
from collections import defaultdict, namedtuple
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fedlightning.storage.plain_values import changed_kinds, plain_checkpoint, plain_value


class Kind(Enum):
    TANH = "tanh"


class Text(str, Enum):
    TANH = "tanh"


class Size(IntEnum):
    LARGE = 3


@dataclass
class Inner:
    folder: PurePosixPath


@dataclass
class Outer:
    kind: Kind
    inner: Inner


class Silent:
    """An object that does not say what it is."""


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError


Pair = namedtuple("Pair", "a b")

VALUES = {
    "an int": (np.int64(3), 3),
    "a float": (np.float32(0.5), 0.5),
    "a flag": (np.bool_(True), True),
    "a text": (np.str_("a"), "a"),
    "an array": (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.float64)),
    "an array of texts": (np.array(["a", "b"]), ["a", "b"]),
    "a path": (PurePosixPath("a/b"), "a/b"),
    "an enum": (Kind.TANH, "TANH"),
    "an enum of strings": (Text.TANH, "tanh"),
    "an enum of numbers": (Size.LARGE, 3),
    "a config": (OmegaConf.create({"n": [1, {"m": 2}]}), {"n": [1, {"m": 2}]}),
    "a config with a link": (OmegaConf.create({"n": 1, "m": "${n}"}), {"n": 1, "m": 1}),
    "a dead link": (OmegaConf.create({"m": "${gone}"}), {"m": "${gone}"}),
    "dataclasses": (
        Outer(Kind.TANH, Inner(PurePosixPath("x"))),
        {"kind": "TANH", "inner": {"folder": "x"}},
    ),
    "a namespace": (Namespace(a=Namespace(b=1)), {"a": {"b": 1}}),
    "a dict with a default": (defaultdict(list, {Kind.TANH: [1]}), {"TANH": [1]}),
    "a named tuple": (Pair(1, np.int64(2)), (1, 2)),
    "sets": ((1, frozenset({3})), (1, {3})),
    "a set of sets": ({frozenset({3})}, {"{3}"}),
    "a range": (range(3), [0, 1, 2]),
    "a parameter": (nn.Parameter(torch.ones(2)), torch.ones(2)),
    "a class": (nn.Tanh, "torch.nn.modules.activation.Tanh"),
    "a function": (nn.functional.relu, "torch.nn.functional.relu"),
    "a builtin": (len, "builtins.len"),
    "a partial": (
        partial(torch.optim.SGD, lr=np.float64(0.5)),
        "functools.partial(torch.optim.sgd.SGD, lr=np.float64(0.5))",
    ),
    "a module": (nn.Linear(2, 3), repr(nn.Linear(2, 3))),
    "an object": (Silent(), f"{__name__}.Silent"),
    "an object whose repr fails": (Broken(), f"{__name__}.Broken"),
    "a dtype": (torch.float32, torch.float32),
}


def read_back(value):
    """Return what a checkpoint of this value holds, read as any checkpoint is."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", VALUES)
def test_every_kind_is_read_without_any_code_of_its_own(name):
    value, expected = VALUES[name]
    got = read_back(plain_value({"x": value}))["x"]
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)
    else:
        assert (type(got), got) == (type(expected), expected)


def test_a_value_that_contains_itself_comes_to_an_end():
    loop: dict = {"a": 1}
    loop["b"] = loop["c"] = [loop]
    assert read_back(plain_value(loop)) == {"a": 1, "b": ["..."], "c": ["..."]}


def test_what_is_used_alike_is_not_spoken_of():
    alike = {
        "lr": np.float64(0.1),
        "path": Path("x"),
        "sizes": (1, frozenset({2})),
        "widths": {"a": [1, 2]},
        "weights": torch.ones(1),
        "name": None,
    }
    assert changed_kinds(alike) == {}
    others = {
        "kind": Kind.TANH,
        "net": {"activations": [1, nn.Tanh]},
        "config": OmegaConf.create({"a": 1}),
        "start": np.zeros(2),
    }
    assert changed_kinds(others) == {
        "kind": "Kind as 'TANH'",
        "net": "type as text",
        "config": "DictConfig as a dict",
        "start": "ndarray as a tensor",
    }


def test_of_a_config_as_a_whole_its_branches_are_other_ones():
    config = OmegaConf.create({"width": 3, "net": {"depth": 2}, "gone": "${nowhere}"})
    assert changed_kinds(config) == {"net": "a config as a dict"}


def test_only_hyperparameters_and_what_became_of_them_are_changed():
    mine = Silent()
    config = OmegaConf.create({"betas": [0.9, 0.99]})
    plain = plain_checkpoint(
        {
            "hyper_parameters": config,
            "hparams_type": type(config),
            "datamodule_hyper_parameters": {"root": PurePosixPath("data")},
            "optimizer_states": [{"param_groups": [{"lr": np.float64(0.5)}]}],
            "callbacks": {"Mine": {"count": np.int64(3), "object": mine}},
            "other": np.int64(3),
        }
    )
    assert plain["hyper_parameters"] == {"betas": [0.9, 0.99]}
    assert plain["hparams_type"] == "omegaconf.dictconfig.DictConfig"
    assert plain["datamodule_hyper_parameters"] == {"root": "data"}
    assert type(plain["optimizer_states"][0]["param_groups"][0]["lr"]) is float
    assert type(plain["callbacks"]["Mine"]["count"]) is int
    assert plain["callbacks"]["Mine"]["object"] is mine
    assert isinstance(plain["other"], np.int64)
