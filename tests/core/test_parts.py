"""Body and head: disjoint, complete, non-empty, or a message that teaches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedlightning import FedAvg, FederatedModule
from fedlightning.core.parts import split_parts
from fedlightning.core.state import copy_into, first_non_finite, first_without_norm, live_state
from fedlightning.errors import ConfigError
from fedlightning.models import MLP, Conv4, MobileNet, ResNet18, TorchvisionClassifier
from tests.toys import fit


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.conv1 = nn.Linear(4, 4)
        self.net.flatten = nn.Flatten()
        self.net.fc = nn.Linear(4, 2)
        self.net.fc2 = nn.Linear(4, 2)


@pytest.mark.parametrize(
    "module", [MLP(), Conv4(), MobileNet(), ResNet18(), TorchvisionClassifier("resnet18")]
)
def test_body_and_head_are_disjoint_complete_and_not_empty(module):
    parts = module.parts
    assert parts.body
    assert parts.head
    assert not set(parts.body) & set(parts.head)
    assert set(parts.body) | set(parts.head) == set(module.state_dict())


def test_a_prefix_is_a_whole_name():
    assert split_parts(Wrapped(), "net.fc").head == ("net.fc.weight", "net.fc.bias")


def test_several_prefixes_make_one_head():
    head = split_parts(Wrapped(), ["net.fc", "net.fc2.bias"]).head
    assert head == ("net.fc.weight", "net.fc.bias", "net.fc2.bias")


def test_a_misspelt_head_is_told_the_near_name():
    with pytest.raises(
        ConfigError, match=r"'net\.cf' matches no parameter .* Did you mean 'net\.fc'\?"
    ):
        split_parts(Wrapped(), "net.cf")


def test_a_head_that_does_not_exist_is_told_the_modules():
    with pytest.raises(ConfigError, match=r"'fc' matches no parameter .*modules: body, head"):
        split_parts(MLP(), "fc")


def test_a_head_without_parameters_is_refused():
    with pytest.raises(ConfigError, match=r"'net\.flatten' of Wrapped has no parameters"):
        split_parts(Wrapped(), "net.flatten")


def test_a_head_that_leaves_no_body_is_refused():
    with pytest.raises(ConfigError, match="no body is left"):
        split_parts(Wrapped(), "net")


def test_no_prefix_at_all_is_refused():
    with pytest.raises(ConfigError, match="names no head"):
        split_parts(Wrapped(), [])


def test_a_tensor_shared_by_body_and_head_is_refused():
    module = Wrapped()
    module.net.fc.weight = module.net.fc2.weight
    with pytest.raises(ConfigError, match="one tied tensor"):
        split_parts(module, "net.fc")


def test_lazy_parameters_are_refused():
    module = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="lazy parameter"):
        split_parts(module, "1")


def test_copying_into_a_module_changes_only_the_given_keys():
    module = nn.Linear(2, 1)
    bias = module.bias.detach().clone()
    copy_into(live_state(module), {"weight": torch.tensor([[1.0, 2.0]])})
    assert module.weight.tolist() == [[1.0, 2.0]]
    assert torch.equal(module.bias, bias)


def test_integers_and_empty_tensors_are_always_finite():
    assert first_non_finite({"n": torch.tensor(3), "e": torch.empty(0)}) is None
    assert first_non_finite({"w": torch.tensor([1.0, float("inf")])}) == "w"


def test_a_misspelt_attribute_is_noticed_whatever_the_algorithm():
    class Misspelt(FederatedModule):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.hed = nn.Linear(4, 5), nn.Linear(5, 3)

    with pytest.raises(ConfigError, match=r"head='head' matches no parameter .*'hed'"):
        fit(Misspelt(), FedAvg())


@given(st.lists(st.sampled_from(["a", "a.b", "b", "b.0", "b.10", "c"]), min_size=1, unique=True))
def test_body_and_head_are_disjoint_and_complete_whatever_the_prefixes(prefixes):
    net = nn.ModuleDict(
        {
            "a": nn.ModuleDict({"b": nn.Linear(1, 1), "bb": nn.Linear(1, 1)}),
            "b": nn.Sequential(*(nn.Linear(1, 1) for _ in range(11))),
            "c": nn.BatchNorm1d(2),
            "d": nn.Linear(1, 1),
        }
    )
    parts = split_parts(net, head=prefixes)
    assert not set(parts.body) & set(parts.head)
    assert [key for key in net.state_dict() if key in {*parts.body, *parts.head}] == list(
        net.state_dict()
    )
    assert all(
        any(key.startswith(f"{prefix}.") for prefix in prefixes) == (key in parts.head)
        for key in net.state_dict()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_that_overflows_is_found_where_all_numbers_are_finite(dtype):
    largest = {"w": torch.full((3,), 6e4, dtype=dtype)}
    assert first_without_norm(largest) is None
    assert first_without_norm({"n": torch.tensor(3), "e": torch.empty(0)}) is None
    assert first_without_norm({**largest, "x": torch.tensor([float("nan")], dtype=dtype)}) == "x"
    if dtype in (torch.bfloat16, torch.float32):
        huge = {"v": torch.full((3,), 1e30, dtype=dtype)}
        assert first_non_finite(huge) is None
        assert first_without_norm(huge) == "v"
