"""A schedule by step reaches the models that clients train beside the shared one."""

from __future__ import annotations

import pytest
import torch

from fedlightning import APFL, FedRoD
from fedlightning.core.state import under
from fedlightning.federation.sampling import FixedCohorts
from tests.toys import Net, data, fit, loop_of, net, state


class Decaying(Net):
    """The learning rate is multiplied by ``gamma`` after every step."""

    def __init__(self, gamma: float) -> None:
        super().__init__(momentum=0.0)
        self.gamma = gamma

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=self.gamma)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def kept(algorithm, name, gamma, **settings):
    module = net(module=Decaying, gamma=gamma)
    built = fit(
        module, algorithm, rounds=1, cohort=1, datamodule=data((16, 6)),
        federation={"sampler": FixedCohorts([(0,)]), "local_epochs": 2}, **settings,
    )  # fmt: skip
    return under(loop_of(built).client_store.get(0), name), state(module)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_a_mixture_of_nothing_but_the_own_model_is_trained_as_the_shared_one(gamma):
    own, shared = kept(APFL(alpha=1.0, adaptive=False), "apfl", gamma)
    for key, value in own.items():
        torch.testing.assert_close(value, shared[key], rtol=1e-6, atol=1e-7)


def test_an_own_head_stops_where_the_rate_is_zero():
    stopped, _ = kept(FedRoD(), "fedrod", gamma=0.0)
    first, _ = kept(FedRoD(), "fedrod", gamma=1.0, limit_train_batches=1)
    constant, _ = kept(FedRoD(), "fedrod", gamma=1.0)
    one_step, _ = kept(FedRoD(), "fedrod", gamma=0.0, limit_train_batches=1)
    for key, value in stopped.items():
        torch.testing.assert_close(value, one_step[key], rtol=0, atol=0)
        assert not torch.equal(value, constant[key])
        assert not torch.equal(first[key], one_step[key])  # two epochs of a batch are two steps
