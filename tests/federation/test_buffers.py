"""What becomes of BatchNorm's statistics: averaged, each client's own, or the initial ones."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlightning import FedAvg, FedBN, FederatedModule, Federation, FedPer, LocalOnly
from fedlightning.algorithms import Algorithm
from fedlightning.algorithms.fedvi import AmortizedHead
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import CheckpointError, ConfigError
from tests.toys import Net, data, fit, loop_of, net, same, state

MEANS, SIZES = (1.0, -2.0, 5.0), (2, 3, 4)


class OnlyNorm(FederatedModule):
    """A BatchNorm layer of momentum one, whose running mean is that of the last batch."""

    def __init__(self) -> None:
        super().__init__(lr=0.1)
        self.body = torch.nn.BatchNorm1d(1, momentum=1.0)
        self.head = torch.nn.Linear(1, 2)


def clients() -> ClientDatasets:
    def some(mean: float, n: int) -> tuple[Tensor, Tensor]:
        x = torch.arange(n).float().reshape(n, 1)
        return x - x.mean() + mean, torch.arange(n) % 2

    pairs = [some(m, n) for m, n in zip(MEANS, SIZES, strict=True)]
    return ClientDatasets(train=pairs, test=pairs, batch_size=8, num_classes=2)


def trained(policy: str, rounds: int = 1, **kwargs: Any) -> Any:
    return fit(OnlyNorm(), FedAvg(), rounds, datamodule=clients(),
               federation={"buffers": policy}, **kwargs)  # fmt: skip


def kept_of(built: Any, key: str = "body.running_mean") -> list[float]:
    return [float(loop_of(built).client_store.get(client)[key]) for client in range(len(SIZES))]


def test_the_average_is_weighted_by_examples():
    built = trained("average")
    mean = sum(n * m for n, m in zip(SIZES, MEANS, strict=True)) / sum(SIZES)
    assert float(built.lightning_module.body.running_mean) == pytest.approx(mean, abs=1e-6)
    assert not loop_of(built).client_store.get(0)


def test_local_ones_stay_with_each_client_and_the_servers_are_the_initial_ones():
    built = trained("local", rounds=2)
    assert kept_of(built) == pytest.approx(MEANS, abs=1e-6)
    assert kept_of(built, "body.num_batches_tracked") == [2, 2, 2]
    assert float(built.lightning_module.body.running_mean) == 0
    assert float(built.lightning_module.body.running_var) == 1


def test_excluded_ones_are_nobodys():
    built = trained("exclude", rounds=2)
    assert float(built.lightning_module.body.running_mean) == 0
    assert float(built.lightning_module.body.running_var) == 1
    assert not loop_of(built).client_store.get(0)


def test_parameters_do_not_depend_on_the_policy():
    found = []
    for policy in ("average", "local", "exclude"):
        module = net(norm=True)
        fit(module, rounds=3, federation={"buffers": policy}, datamodule=data((8, 6, 7)))
        found.append(dict(module.named_parameters()))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_a_run_with_local_ones_is_resumed_to_the_same_bits(tmp_path):
    whole, half, resumed = (net(seed, norm=True, lr_milestones=()) for seed in (0, 0, 4))
    settings = {"federation": {"buffers": "local"}, "datamodule": data((8, 6, 7))}
    one = fit(whole, rounds=4, cohort=2, **settings)
    fit(half, rounds=2, cohort=2, **settings).save_checkpoint(tmp_path / "a.ckpt")
    two = fit(resumed, rounds=4, cohort=2, ckpt=tmp_path / "a.ckpt", **settings)
    assert same(state(whole), state(resumed))
    stores = [loop_of(built).client_store for built in (one, two)]
    assert all(same(stores[0].get(c) or {}, stores[1].get(c) or {}) for c in range(3))


def test_another_policy_is_another_run(tmp_path):
    trained("local").save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"federation\.buffers: local -> exclude"):
        trained("exclude", rounds=2, ckpt=tmp_path / "a.ckpt")


@pytest.mark.parametrize(("policy", "words"), [
    ("average", "2 of 2) are averaged"), ("local", "2 of 2) stay with each client"),
    ("exclude", "2 of 2) stay as they are initially"),
])  # fmt: skip
def test_the_log_says_so_at_the_start(policy, words, caplog):
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        trained(policy)
    (line,) = [r.message for r in caplog.records if r.message.startswith("buffers ")]
    assert f"(federation.buffers={policy}): body.running_mean, body.running_var" in line
    assert words in line


def test_the_log_says_nothing_of_a_network_without_any(caplog):
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        fit(net(), federation={"buffers": "local"})
    assert not [r for r in caplog.records if r.message.startswith("buffers ")]


def test_it_goes_with_algorithms_that_keep_parts():
    def run(algorithm: Any, policy: str) -> Any:
        return fit(net(norm=True), algorithm, federation={"buffers": policy},
                   datamodule=data((8, 6, 7)))  # fmt: skip

    own = {f"body.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    for algorithm in (FedBN(), FedPer()):
        assert own <= set(loop_of(run(algorithm, "local")).client_store.get(0))
    both = [run(FedBN(), policy) for policy in ("average", "local")]
    assert same(*(state(built.lightning_module) for built in both))


@pytest.mark.parametrize(("policy", "algorithm", "message"), [
    ("exclude", FedBN(), "FedBN leaves body.1.running_mean to the clients"),
    ("exclude", LocalOnly(), "LocalOnly leaves body.1.running_mean to the clients"),
    ("local", Algorithm(local=[AmortizedHead()]), "Algorithm lets clients keep nothing"),
], ids=str)  # fmt: skip
def test_what_contradicts_the_algorithm_is_refused(policy, algorithm, message):
    with pytest.raises(ConfigError, match=message):
        fit(net(norm=True), algorithm, federation={"buffers": policy})


def test_unknown_policies_are_refused():
    with pytest.raises(ConfigError, match="must be one of average, local, exclude, got 'locals'"):
        Federation(buffers="locals")


def test_several_clients_at_once_have_their_own():
    found = []
    for size in (1, 3):
        built = fit(
            net(module=Net, norm=True), rounds=2, datamodule=data((8, 8, 8)),
            federation={"buffers": "local", "clients_per_kernel": size},
        )  # fmt: skip
        found.append([loop_of(built).client_store.get(c)["body.1.running_mean"] for c in range(3)])
    assert torch.allclose(torch.stack(found[0]), torch.stack(found[1]), atol=1e-6)
    assert not torch.allclose(found[0][0], found[0][1], atol=1e-3)
