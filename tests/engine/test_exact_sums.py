"""Each worker adds its own clients' updates, and the bits are those of one process."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist

from fedlightning import SCAFFOLD, Algorithm, FedAdam, FedAvg, Federation, FedPer
from fedlightning.algorithms.aggregation import CoordinateMedian, Mean
from fedlightning.federation.server import Server
from tests.toys import client_states, fit, loop_of, net, same, state

EXACT = Algorithm(sums="exact")


class Sent(pl.Callback):
    """Counts the bytes of tensors that each worker broadcasts or adds up, in its own file."""

    def __init__(self, folder):
        self.folder, self.bytes = folder, 0

    def on_train_start(self, trainer, pl_module):
        broadcast, all_reduce = dist.broadcast, dist.all_reduce

        def counted(tensor, src, **kwargs):
            self.bytes += tensor.numel() * tensor.element_size()
            return broadcast(tensor, src=src, **kwargs)

        def reduced(tensor, **kwargs):
            self.bytes += tensor.numel() * tensor.element_size()
            return all_reduce(tensor, **kwargs)

        dist.broadcast, dist.all_reduce = counted, reduced
        self.stock = broadcast, all_reduce

    def on_train_end(self, trainer, pl_module):
        dist.broadcast, dist.all_reduce = self.stock
        (self.folder / f"sent.{trainer.global_rank}").write_text(str(self.bytes))


def run(folder, algorithm, devices=1, cohort=4, **kwargs):
    folder.mkdir()
    settings = {"callbacks": []}
    if devices > 1:
        settings = {"devices": devices, "accelerator": "cpu", "strategy": "ddp_fork"}
        settings["callbacks"] = [Sent(folder)]
    fit(net(), algorithm, rounds=3, cohort=cohort, folder=folder, **settings, **kwargs)
    [last] = folder.rglob("last.ckpt")
    return torch.load(last, weights_only=True)


@pytest.mark.parametrize(
    ("algorithm", "cohort"),
    [
        (FedAvg() + EXACT, 4),
        (FedAvg(weights="uniform") + EXACT, 1),  # a worker has no client
        (FedPer() + FedAdam() + EXACT, 3),
        (SCAFFOLD() + EXACT, 3),
    ],
    ids=["FedAvg", "one client", "FedPer", "SCAFFOLD"],
)
def test_two_workers_have_the_bits_of_one(algorithm, cohort, tmp_path):
    one = run(tmp_path / "one", algorithm, cohort=cohort)
    two = run(tmp_path / "two", algorithm, devices=2, cohort=cohort)
    assert same(one["state_dict"], two["state_dict"])
    assert same(client_states(one), client_states(two))
    metrics = [next((tmp_path / name).rglob("metrics.csv")).read_text() for name in ("one", "two")]
    assert metrics[0] == metrics[1]


def test_it_is_the_mean_in_float64_but_for_its_last_bits():
    plain, exact = net(), net()
    fit(plain, FedAvg(), rounds=3)
    fit(exact, FedAvg() + EXACT, rounds=3)
    for key, value in state(plain).items():
        torch.testing.assert_close(state(exact)[key], value, rtol=1e-5, atol=1e-7)


def test_a_worker_sends_the_sums_and_not_the_cohort(tmp_path):
    """Four digits of eight bytes per parameter and round, whatever the number of clients."""
    parameters = sum(value.numel() for value in net().parameters())
    run(tmp_path / "exact", FedAvg() + EXACT, devices=2)
    run(tmp_path / "gathered", FedAvg(), devices=2)
    for rank in (0, 1):
        exact = int((tmp_path / "exact" / f"sent.{rank}").read_text())
        gathered = int((tmp_path / "gathered" / f"sent.{rank}").read_text())
        assert gathered - exact == 3 * (4 * 4 - 4 * 8) * parameters  # 3 rounds, 4 clients


@pytest.mark.parametrize(
    ("algorithm", "aggregator", "says"),
    [
        (FedAvg(), None, 'sums are not "exact"'),
        (FedAvg() + EXACT, CoordinateMedian(), "CoordinateMedian compares them"),
        (FedAvg() + EXACT, Mean(), None),
        (FedAvg() + EXACT, None, None),
    ],
)
def test_why_updates_are_gathered(algorithm, aggregator, says):
    server = Server(algorithm, 2, aggregator)
    server.start({"w": torch.zeros(2)}, ["w"], ["w"], ["w"])
    assert server.why_not_apart() == says


def test_stale_updates_are_gathered():
    server = Server(FedAvg() + EXACT, 2)
    server.start({"w": torch.zeros(2)}, ["w"], ["w"], ["w"])
    assert server.why_not_apart(staleness=True) == "they may be stale"


def test_a_callback_that_looks_at_updates_gets_them(tmp_path):
    class Look(pl.Callback):
        def on_client_end(self, trainer, pl_module, update):
            assert update.state
            assert not update.elsewhere
            assert not loop_of(trainer)._executor.apart

    one = run(tmp_path / "one", FedAvg() + EXACT)
    folder = tmp_path / "two"
    fit(
        net(), FedAvg() + EXACT, rounds=3, cohort=4, folder=folder, devices=2, accelerator="cpu",
        strategy="ddp_fork", callbacks=[Look()],
    )  # fmt: skip
    [last] = folder.rglob("last.ckpt")
    assert same(one["state_dict"], torch.load(last, weights_only=True)["state_dict"])


def test_a_federation_takes_it_as_any_other_choice():
    assert Federation(FedAvg(sums="exact")).algorithm.sums == "exact"
