"""Parts: body and head disjoint and complete, further parts by name, expressions over names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedlightning import FedAvg, FederatedModule
from fedlightning.core.parts import (
    KeyRoles,
    canonical,
    names_in,
    split_parts,
    split_subtractions,
    without,
)
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


class Blocks(nn.Module):
    """Two blocks and a head, each with an adapter; BatchNorm in one block; a second network."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.block(), self.block()])
        self.blocks[0].norm = nn.BatchNorm1d(2, affine=False)
        self.head = self.block()
        self.private = nn.Linear(2, 1)

    @staticmethod
    def block() -> nn.Module:
        block = nn.Linear(2, 2, bias=False)
        block.lora_A = nn.Parameter(torch.zeros(2, 1))
        return block


WEIGHTS = ("blocks.0.weight", "blocks.1.weight")
ADAPTERS = ("blocks.0.lora_A", "blocks.1.lora_A", "head.lora_A")
NORM = tuple(f"blocks.0.norm.{n}" for n in ("running_mean", "running_var", "num_batches_tracked"))
HEAD = ("head.weight", "head.lora_A")
PRIVATE = ("private.weight", "private.bias")
BLOCKS = split_parts(Blocks(), "head", {"adapter": "*.lora_*", "private": "private"})


@pytest.mark.parametrize(
    ("expression", "keys"),
    [
        ("body", {*WEIGHTS, *NORM}),
        ("head", {*HEAD}),
        ("adapter", {*ADAPTERS}),
        ("norm", {*NORM}),
        ("none", set()),
        ("full", {*WEIGHTS, *NORM, *HEAD, *ADAPTERS, *PRIVATE}),
        ("full - private", {*WEIGHTS, *NORM, *HEAD, *ADAPTERS}),
        ("adapter + head", {*ADAPTERS, *HEAD}),
        ("adapter-head", {"blocks.0.lora_A", "blocks.1.lora_A"}),
        ("head - adapter + body - norm", {"head.weight", *WEIGHTS}),
        ("full - adapter + adapter", {*WEIGHTS, *NORM, *HEAD, *ADAPTERS, *PRIVATE}),
    ],
)
def test_an_expression_adds_and_removes_parts_from_left_to_right(expression, keys):
    assert set(BLOCKS.keys(expression)) == keys


def test_keys_come_in_the_order_of_the_body_first_whatever_the_order_of_the_names():
    assert BLOCKS.keys("head + adapter") == BLOCKS.keys("adapter + head")
    assert BLOCKS.full[:5] == BLOCKS.body
    assert split_parts(Wrapped(), "net.conv1").full == (
        "net.fc.weight", "net.fc.bias", "net.fc2.weight", "net.fc2.bias",
        "net.conv1.weight", "net.conv1.bias",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("blocks.*.lora_A", ADAPTERS[:2]),
        ("blocks.?", (*WEIGHTS, *NORM, *ADAPTERS[:2])),
        ("*.norm", NORM),
        (["private.bias", "blocks.1"], ("blocks.1.weight", "blocks.1.lora_A", "private.bias")),
    ],
)
def test_a_pattern_stands_for_the_keys_and_the_layers_that_it_matches(pattern, keys):
    found = split_parts(Blocks(), None, {"some": pattern}).keys("some")
    assert set(found) == set(keys)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"adapter": "*.lroa_A"},
            r"parts\['adapter'\]='\*\.lroa_A' matches .* mean '\*\.lora_A'\?",
        ),
        ({"own": "privat"}, r"parts\['own'\]='privat' matches no .* Did you mean 'private'\?"),
        (
            {"own": ["private", "x"]},
            r"parts\['own'\]='x' matches no parameter of Blocks \(modules: b",
        ),
        (
            {"body": "blocks"},
            "'body' cannot name a part; use a word other than full, none, body, norm",
        ),
        ({"low-rank": "blocks"}, "'low-rank' cannot name a part"),
        ({"own": 3}, "'own' must be a key prefix or pattern, or a list of them, got 3"),
        ({"own": []}, r"'own' must be a key prefix or pattern, or a list of them, got \[\]"),
    ],
)
def test_a_part_that_cannot_be_is_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        split_parts(Blocks(), "head", names)


def test_a_tensor_that_is_in_a_part_and_outside_is_refused():
    module = Blocks()
    module.private.weight = module.blocks[0].weight
    with pytest.raises(
        ConfigError, match=r"private\.weight is in part 'private' .* tied to blocks\.0\.weight"
    ):
        split_parts(module, None, {"private": "private"})


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "train='' names no part"),
        ("full -", "train='full -' ends in '-'; name another part after it"),
        ("full norm", r"train='full norm': expected \+ or - before 'norm'"),
        ("- norm", "train='- norm': expected the name of a part, got '-'"),
        ("full - - norm", "expected the name of a part, got '-'"),
        ("body * head", r"expected \+ or - before '\*'"),
        ("2 + head", "expected the name of a part, got '2'"),
        (True, "train must name parts of the model, got True"),
    ],
)
def test_what_is_not_an_expression_is_refused(expression, message):
    with pytest.raises(ConfigError, match=message):
        canonical(expression, "train")


@pytest.mark.parametrize("text", ["full-norm", " full  -norm", "full - norm"])
def test_spaces_around_signs_do_not_matter(text):
    assert canonical(text) == "full - norm"
    assert names_in(text) == ("full", "norm")


@pytest.mark.parametrize(
    ("expression", "base", "removed"),
    [
        ("full", "full", ()),
        ("full - norm - own", "full", ("norm", "own")),
        ("full - norm + head", "full - norm + head", ()),
        ("full - norm + head - own", "full - norm + head", ("own",)),
    ],
)
def test_the_parts_removed_at_the_end_are_told_from_the_rest(expression, base, removed):
    assert split_subtractions(expression) == (base, removed)
    assert without(base, *removed) == expression
    assert without(expression, *removed) == expression


@pytest.mark.parametrize(
    ("expression", "near"), [("privte", "private"), ("full - head2", "head"), ("bdy", "body")]
)
def test_an_unknown_name_is_told_the_near_one(expression, near):
    with pytest.raises(
        ConfigError, match=rf"^part='{expression}': Blocks has no part .* Did you mean '{near}'\?$"
    ):
        BLOCKS.keys(expression)


def test_norm_of_a_model_without_batch_norm_is_refused():
    with pytest.raises(ConfigError, match="'full - norm': Wrapped has no BatchNorm layers"):
        split_parts(Wrapped(), "net.fc").keys("full - norm")


@pytest.mark.parametrize(
    ("train", "share", "message"),
    [
        ("none", "full", "algorithm.train='none' leaves nothing of Blocks to train"),
        ("adapter - adapter", "full", "algorithm.train='adapter - adapter' leaves nothing"),
        ("full", "head - full", "algorithm.share='head - full' leaves nothing of Blocks to share"),
        (
            "adapter + tail",
            "full",
            r"algorithm\.train='adapter \+ tail': Blocks has no part 'tail'",
        ),
    ],
)
def test_choices_that_leave_nothing_are_refused(train, share, message):
    with pytest.raises(ConfigError, match=message):
        KeyRoles.of(BLOCKS, train, share, keep=True)


def test_what_is_trained_and_not_shared_is_kept():
    roles = KeyRoles.of(BLOCKS, "adapter + private", "full - private", keep=True)
    assert set(roles.trained) == {*ADAPTERS, *PRIVATE}
    assert set(roles.shared) == {*WEIGHTS, *NORM, *HEAD, *ADAPTERS}
    assert roles.kept == PRIVATE
    assert KeyRoles.of(BLOCKS, "adapter + private", "full - private", keep=False).kept == ()
