"""A module that cannot take the clients' data is told so before the first round."""

import pytest
import torch
from torch import nn

from fedlightning import FedAvg, FedBABU, FederatedModule
from fedlightning.datamodules import ClientDatasets
from fedlightning.engine.checks.module import check_fit, check_lone_examples
from fedlightning.errors import ConfigError, DataError, FederationError
from fedlightning.models import MLP, Conv4
from tests.toys import fit, net, state


class Normalised(FederatedModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
        self.head = nn.Linear(3, 2)


def clients(
    *sizes: int, inputs=(4,), num_classes: int = 2, cls=ClientDatasets, **options
) -> ClientDatasets:
    data = [(torch.rand(n, *inputs), torch.arange(n) % num_classes) for n in sizes]
    return cls(train=data, test=data, num_classes=num_classes, **options)


def test_images_of_another_shape_are_told_the_one_that_fits():
    with pytest.raises(DataError, match="Conv4 expected 1×28×28, got 3×32×32"):  # noqa: RUF001
        check_fit(Conv4(in_channels=1, image_size=28), torch.zeros(2, 3, 32, 32), 10)


def test_features_of_another_number_are_told_the_one_that_fits():
    with pytest.raises(DataError, match="MLP expected 64, got 3×5"):  # noqa: RUF001
        check_fit(MLP(in_features=64), torch.zeros(2, 3, 5), 10)


def test_a_forward_that_fails_whatever_it_gets_says_how():
    class Broken(MLP):
        def forward(self, x):
            raise RuntimeError("no such thing")

    with pytest.raises(DataError, match="of shape 64: RuntimeError: no such thing"):
        check_fit(Broken(in_features=64), torch.zeros(2, 64), 10)


def test_fewer_outputs_than_classes_are_refused_before_training():
    with pytest.raises(ConfigError, match="2 outputs, the data has 3 classes"):
        fit(MLP(in_features=4, num_classes=2), FedAvg(), datamodule=clients(9, 9, num_classes=3))


def test_a_lone_example_and_batch_norm_are_refused_with_the_client():
    with pytest.raises(DataError, match=r"client 1 has 1 sample, so a batch of 1 sample.*Norm"):
        fit(Normalised(), FedAvg(), datamodule=clients(8, 1, batch_size=4))
    with pytest.raises(DataError, match="client 0 has 9 samples, so a batch of 1 sample"):
        fit(Normalised(), FedAvg(), datamodule=clients(9, 8, batch_size=4))


def test_lone_examples_are_fine_where_they_can_be_trained_on():
    check_lone_examples(MLP(in_features=4), torch.zeros(1, 4), [8, 1], batch_size=4)
    images = torch.zeros(1, 3, 32, 32)  # one image has many values a channel
    check_lone_examples(Conv4(), images, [8, 1], batch_size=4)
    fit(Normalised(), FedAvg(), datamodule=clients(9, 9, batch_size=4, drop_last=True))


def test_the_checks_leave_no_trace():
    module, inputs = Normalised().train(), torch.rand(2, 4)
    before = state(module), torch.get_rng_state()
    check_fit(module, inputs, 2)
    with pytest.raises(DataError):
        check_lone_examples(module, inputs, [1], batch_size=4)
    assert module.training
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(torch.equal(value, before[0][key]) for key, value in state(module).items())


def test_a_training_step_of_ones_own_may_do_with_the_data_what_it_likes():
    class Own(type(net())):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return nn.functional.cross_entropy(self(nn.functional.pad(x, (0, 2))), y)

        def test_step(self, batch, batch_idx):
            pass

    fit(net(module=Own), FedBABU(), datamodule=clients(4, 4, inputs=(2,)))


def test_a_transform_of_ones_own_that_fails_names_the_client_it_was_tried_on():
    class Own(ClientDatasets):
        def transform_batch(self, batch, training):
            raise ValueError("no colour")

    with pytest.raises(FederationError, match=r"client 1, its first batch: ValueError: no colour"):
        fit(net(), FedAvg(), datamodule=clients(4, 5, cls=Own))


def test_test_examples_that_the_module_cannot_take_are_refused_before_training():
    train, narrow = (torch.rand(6, 4), torch.arange(6) % 3), (torch.rand(2, 5), torch.arange(2))
    both = ClientDatasets(train=[train, train], test=[(narrow[0][:1], narrow[1][:1]), narrow])
    with pytest.raises(DataError, match=r"client 1, test data: Net.* got 5"):
        fit(net(), FedAvg(), datamodule=both)
