"""The head alone gives what the long way gives; where it would not, it is not taken."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedlightning import Algorithm, FedBABU, PersonalizationCallback
from fedlightning.datamodules import ClientDatasets, FashionMNIST
from fedlightning.engine.per_example import doubt
from fedlightning.errors import ConfigError
from fedlightning.models import Conv4, ResNet18, TorchvisionClassifier
from fedlightning.personalization.head_only import finetuning
from fedlightning.personalization.head_only.eligibility import _of_data
from fedlightning.personalization.head_only.features import pooling_without_indices
from fedlightning.personalization.head_only.linear_sgd import SGDSettings, tune_linear_head
from tests.toys import CLASSES, FEATURES, Net, data, examples, fit, net, same, state

EMPTY = torch.empty(0, FEATURES), torch.empty(0, dtype=torch.long)
SETTINGS = [
    {"momentum": 0.0},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.5, "weight_decay": 0.1, "dampening": 0.3},
    {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
]


def personalised(module, datamodule=None, algorithm=None, trainer=None, **kwargs):
    """Fit a round and personalise all clients: their results and states, and the personalizer."""
    built = fit(module, algorithm or FedBABU(), rounds=1, datamodule=datamodule, **(trainer or {}))
    callback = PersonalizationCallback(**{"epochs": 3, "lr": 0.2, **kwargs})
    states, results = [], []
    with callback.personalizer(built).at_work() as personalizer:
        for client in range(built.datamodule.num_clients):
            results.append(personalizer.client(client))
            states.append(state(module))
    return results, states, personalizer


def reason(module=None, datamodule=None, **kwargs):
    """Return why the long way is taken."""
    return personalised(module or net(), datamodule, **kwargs)[2].fallback_reason


def assert_alike(module, make_data, **kwargs):
    """Personalise in both ways and compare."""
    long, long_states, plain = personalised(module(), make_data(), features_once=False, **kwargs)
    short, short_states, once = personalised(module(), make_data(), **kwargs)
    assert plain.fallback_reason == "features_once is False"
    assert once.fallback_reason is None
    for one, other in zip(long_states, short_states, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=1e-5)
    for one, other in zip(long, short, strict=True):
        for name in ("client_id", "num_train", "num_test", "acc_before", "acc_after"):
            expected = pytest.approx(getattr(one.record, name), abs=0, rel=0, nan_ok=True)
            assert getattr(other.record, name) == expected, name
        assert other.record.loss_after == pytest.approx(one.record.loss_after, 1e-5, nan_ok=True)
        assert other.nearest_mean_acc == pytest.approx(one.nearest_mean_acc, nan_ok=True)
        assert other.before.keys() == one.before.keys()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("bias", [True, False])
def test_steps_are_those_of_torch_sgd(settings, bias):
    x, y = examples(10, seed=1)
    ours, theirs = (nn.Linear(FEATURES, CLASSES, bias=bias).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.3, **settings)
    batches = [torch.randperm(10, generator=torch.Generator().manual_seed(e)) for e in range(4)]
    batches = [rows for order in batches for rows in order.split(4)]
    for rows in batches:
        sgd.zero_grad()
        F.cross_entropy(theirs(x.double()[rows]), y[rows]).backward()
        sgd.step()
    tune_linear_head(ours, x.double(), y, batches, SGDSettings.of(sgd))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{"momentum": 0.0}, {"weight_decay": 0.05}])
def test_ragged_clients_end_where_the_long_way_ends(settings):
    assert_alike(net, lambda: data((8, 6, 7, 1, 13)), **settings)


def test_batch_norm_with_running_statistics_is_known():
    assert_alike(lambda: net(norm=True), lambda: data((8, 6, 7, 10)))


def test_short_last_batches_are_left_out_where_the_data_say_so():
    assert_alike(net, lambda: data((8, 6, 7, 5), drop_last=True))


def test_a_head_without_bias_and_a_body_with_dropout():
    class NoBias(Net):
        def __init__(self):
            super().__init__(dropout=0.5)
            self.head = nn.Linear(5, CLASSES, bias=False)

    assert_alike(lambda: net(module=NoBias), data)


@pytest.mark.filterwarnings("ignore:.*no test examples")
def test_clients_without_test_data_are_treated_alike():
    def make():
        train = [examples(6, 0), examples(5, 1), examples(1, 2)]
        test = [examples(4, 2), EMPTY, examples(1, 3)]
        return ClientDatasets(train=train, test=test, num_classes=CLASSES)

    assert_alike(net, make)


@pytest.mark.parametrize("share", ["body", "head"])
def test_clients_start_from_the_part_that_they_keep(share):
    assert_alike(net, data, algorithm=Algorithm(train="full", share=share))


def test_images_through_convolutions_pools_and_running_statistics():
    class Small(Conv4):
        def __init__(self):
            super().__init__(num_classes=CLASSES, in_channels=1, image_size=16, width=8)
            for block in self.body.features:
                block[1] = nn.BatchNorm2d(8)

    def images():
        make = torch.Generator().manual_seed(0)
        parts = [
            (torch.randn(n, 1, 16, 16, generator=make), torch.arange(n) % CLASSES)
            for n in (70, 9, 8, 9)
        ]
        return ClientDatasets(train=parts[:2], test=parts[2:], num_classes=CLASSES, batch_size=4)

    assert_alike(lambda: net(module=Small), images, lr=0.01)


def test_networks_of_our_own_and_torchvisions_are_known():
    for module in (ResNet18(), TorchvisionClassifier("resnet18"), TorchvisionClassifier("alexnet")):
        assert doubt(module) is None


def test_the_optimizer_may_be_the_users_if_it_is_plain_sgd():
    def nesterov(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)

    assert_alike(net, data, optimizer=nesterov)


def test_clients_do_not_depend_on_who_came_before():
    _, together, _ = personalised(net())
    built = fit(net(), FedBABU(), rounds=1)
    with PersonalizationCallback(epochs=3, lr=0.2).personalizer(built).at_work() as personalizer:
        for client in (2, 0):
            personalizer.client(client)
            assert same(state(built.lightning_module), together[client])


def test_clients_with_many_features_go_the_long_way_one_by_one(monkeypatch):
    long, short = personalised(net(), features_once=False)[1], personalised(net())[1]
    monkeypatch.setattr(finetuning, "FEATURE_BYTES", (7 + 4) * 5 * 4)  # clients 1, 2 and 3
    mixed = personalised(net())[1]
    assert same(mixed[0], long[0])
    assert not same(short[0], long[0])
    assert all(same(a, b) for a, b in zip(mixed[1:], short[1:], strict=True))


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_without_indices_gives_the_same_values(size, layout):
    x = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = math.nan
    x = x.to(memory_format=layout)
    for pool in (nn.MaxPool2d(2), nn.MaxPool2d((2, 2), (2, 2)), nn.MaxPool2d(3, 2)):
        expected = pool(x)
        with pooling_without_indices(nn.Sequential(pool)):
            assert pool(x).equal(expected) or torch.equal(
                pool(x).nan_to_num(9.0), expected.nan_to_num(9.0)
            )
        assert "forward" not in vars(pool)


class OwnTrainingStep(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


class OwnTestStep(Net):
    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)


class OwnHook(Net):
    def on_train_epoch_start(self):
        pass


class OwnOptimizerHook(Net):
    def on_before_optimizer_step(self, optimizer):
        pass


class OwnTransfer(Net):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class OwnForward(Net):
    def forward(self, x):
        return super().forward(x)


class OwnLayer(Net):
    def __init__(self):
        class Centred(nn.Module):
            def forward(self, x):
                return x - x.mean(dim=0)

        super().__init__()
        self.body.append(Centred())


class DeepHead(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, CLASSES))


class BatchStatistics(Net):
    def __init__(self):
        super().__init__()
        self.body.append(nn.BatchNorm1d(5, track_running_stats=False))


class Watched(Net):
    def __init__(self):
        super().__init__()
        self.body[0].register_forward_hook(lambda *_: None)


@pytest.mark.filterwarnings("ignore:You have overridden")
@pytest.mark.parametrize(
    ("module", "why"),
    [
        (OwnTrainingStep, "training_step of its own"),
        (OwnTestStep, "test_step of its own"),
        (OwnHook, "on_train_epoch_start"),
        (OwnOptimizerHook, "on_before_optimizer_step"),
        (OwnTransfer, "change batches"),
        (OwnForward, "forward of its own"),
        (OwnLayer, "Centred"),
        (DeepHead, "not one nn.Linear"),
        (BatchStatistics, "no running statistics"),
        (Watched, "hooks"),
    ],
)
def test_modules_that_want_more_go_the_long_way(module, why):
    assert why in reason(net(module=module), data((8, 6, 6, 8)))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"gradient_clip_val": 1.0}, "clipped"),
        ({"accumulate_grad_batches": 2}, "accumulated"),
        ({"limit_train_batches": 1}, "limit_train_batches"),
        ({"precision": "bf16-mixed"}, "precision"),
    ],
)
def test_trainers_that_want_more_go_the_long_way(flags, why):
    assert why in reason(trainer=flags)


def test_another_optimizer_goes_the_long_way():
    assert "Adam" in reason(optimizer=lambda parameters: torch.optim.Adam(parameters))


def test_another_part_and_a_half_frozen_head_go_the_long_way():
    assert reason(part="body") == "part is 'body'"
    module = net()
    module.head.bias.requires_grad_(False)
    assert "head and all of it" in reason(module)


def test_data_that_change_from_batch_to_batch_go_the_long_way():
    class Noisy(ClientDatasets):
        def transform_batch(self, batch, training):
            return batch[0] + torch.randn_like(batch[0]) * training, batch[1]

    pairs = [examples(6, 0), examples(5, 1)]
    noisy = Noisy(train=pairs, test=pairs, num_classes=CLASSES)
    assert "differently from batch to batch" in reason(datamodule=noisy)
    assert FashionMNIST().transforms_alike
    assert not FashionMNIST(augment=True).transforms_alike


def test_labels_that_the_head_has_no_output_for_go_the_long_way():
    datamodule = data()
    datamodule.num_classes = 5
    datamodule.setup()
    assert "no output" in _of_data(datamodule, CLASSES - 1)
    assert _of_data(datamodule, CLASSES) is None


def test_insisting_on_the_impossible_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="features_once=True cannot be: OwnTrainingStep has"):
        personalised(net(module=OwnTrainingStep), features_once=True)


def test_insisting_vouches_for_layers_of_ones_own():
    _, _, personalizer = personalised(net(module=OwnForward), features_once=True)
    assert personalizer.fallback_reason is None


def test_a_head_whose_output_is_not_the_models_is_found_out():
    class Scaled(Net):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ConfigError, match="is not its head's output"):
        personalised(net(module=Scaled), features_once=True)
