"""What holds for systems that need a network or data of their own; a new one joins the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from fedlightning import FedAvg, FedDF, FedMD, FedPN, FedRes, FedVI, IterativeDataSmoothing, PFedHR
from fedlightning.algorithms import Algorithm
from fedlightning.algorithms.aggregation import CoordinateMedian, Krum
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError
from fedlightning.federation.uplink import ClipNorm, Int8
from fedlightning.models import (
    LayeredNetworks,
    PosteriorNetwork,
    ResidualMLP,
    RewardMLP,
    SmallViT,
    VariationalMLP,
)
from fedlightning.storage.checkpoint_reader import loop_state, read_checkpoint
from tests.algorithms.cases import BAD, COHORTS, SIZES, WITHOUT_TWO, Counts, everything
from tests.toys import (
    CLASSES,
    FEATURES,
    Net,
    client_states,
    data,
    examples,
    loop_of,
    net,
    same,
    trainer,
)

SGD = {"lr": 0.1, "lr_milestones": ()}


def preferences() -> ClientDatasets:
    """Return clients with pairs of items; the one with the larger first feature is preferred."""
    pairs = []
    for seed, n in enumerate((*SIZES, *[4] * len(SIZES))):
        x = torch.randn(n, 2, FEATURES, generator=torch.Generator().manual_seed(seed))
        pairs.append((x, (x[:, 0, 0] > x[:, 1, 0]).float()))
    return ClientDatasets(train=pairs[: len(SIZES)], test=pairs[len(SIZES) :], batch_size=4)


class WithPublic(ClientDatasets):
    """Clients of the usual kind, and some examples that everybody has."""

    def __init__(self) -> None:
        pairs = [examples(n, seed) for seed, n in enumerate((*SIZES, *[4] * len(SIZES)))]
        super().__init__(train=pairs[: len(SIZES)], test=pairs[len(SIZES) :], batch_size=4,
                         num_classes=CLASSES)  # fmt: skip

    def split_examples(self, client: int, split: str) -> Any:
        return examples(10, seed=99)


class Pictures(ClientDatasets):
    """Clients with images of 4x4 pixels, and some that everybody has."""

    def __init__(self) -> None:
        pairs = [pictures(n, seed) for seed, n in enumerate((*SIZES, *[4] * len(SIZES)))]
        super().__init__(train=pairs[: len(SIZES)], test=pairs[len(SIZES) :], batch_size=4,
                         num_classes=CLASSES)  # fmt: skip

    def split_examples(self, client: int, split: str) -> Any:
        return pictures(10, seed=99)


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return n separable images: the class is the brightest of the first three pixels."""
    x = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x, x.flatten(1)[:, :CLASSES].argmax(dim=1)


@dataclass(frozen=True)
class System:
    """An algorithm with what it needs, and what it may tell the server."""

    algorithm: Algorithm
    module: type[Any]
    arguments: dict[str, Any]
    private: tuple[str, ...]  # what the names of kept tensors begin with
    make_data: Callable[[], Any] = lambda: data(SIZES)
    extras: tuple[str, ...] = ()
    federation: dict[str, Any] = field(default_factory=dict)

    def net(self, seed: int = 0, at: tuple[int, ...] = ()) -> Any:
        """Return the network; it fails at these of the batches of three that client 2 has."""

        class Faulty(self.module):  # type: ignore[name-defined, misc]
            counts = Counts()

            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                super().on_train_batch_end(outputs, batch, batch_idx)
                if self.trainer.current_epoch == 1 and len(batch[1]) == 3:
                    self.counts.seen += 1
                    if self.counts.seen in at:
                        next(self.parameters()).requires_grad_(False)
                        self.trainer.optimizers[0].param_groups[0]["lr"] = 9.0
                        raise ValueError("bad luck")

        return net(seed, module=Faulty, **self.arguments)


ARCHITECTURES = {"plain": ["fc5"], "conv": ["conv3", "conv2", "fc4"]}
MIXED = {"architectures": ARCHITECTURES, "in_shape": (1, 4, 4), "num_classes": CLASSES, **SGD}
NETWORKS = ("networks.", "architecture")
PAIR = {"in_features": FEATURES, "shared_hidden": [5], "num_classes": CLASSES, "private_lr": 0.05}
POSTERIOR = {"in_features": FEATURES, "hidden": [5], "num_classes": CLASSES, "features": 2}
SYSTEMS = {
    "FedRes": System(FedRes(), ResidualMLP, {**PAIR, **SGD}, ("private.",)),
    "FedRes, sgd": System(FedRes("sgd"), ResidualMLP, {**PAIR, **SGD}, ("private.",)),
    "FedRes, corrected": System(
        FedRes("corrected", keep_optimizer=True), ResidualMLP, {**PAIR, **SGD},
        ("private.", "fedres_optimizer/", "scaffold/"), extras=("scaffold",),
    ),
    "FedRes, simultaneous": System(
        FedRes("simultaneous"), ResidualMLP, {**PAIR, **SGD}, ("private.",)
    ),
    "IDS": System(
        IterativeDataSmoothing(0.3), RewardMLP, {"in_features": FEATURES, "hidden": [5], **SGD},
        ("ids:labels",), preferences,
    ),
    "FedVI": System(
        FedVI(), VariationalMLP,
        {"in_features": FEATURES, "hidden": [5], "num_classes": CLASSES, "constructor_hidden": 6,
         **SGD}, (),
    ),
    "FedPN": System(FedPN(), PosteriorNetwork, {**POSTERIOR, "density": "gaussian"}, ()),
    "FedPN, radial flows": System(
        FedPN(), PosteriorNetwork, {**POSTERIOR, "density": "radial", "transforms": 3}, ()
    ),
    "FedMD": System(
        FedMD(public_epochs=2, public_batch_size=4), LayeredNetworks, MIXED, NETWORKS, Pictures,
        ("fedmd",),
    ),
    "FedDF": System(
        FedDF(epochs=2, batch_size=4), Net, {"norm": True, "dropout": 0.3, **SGD}, (), WithPublic
    ),
    "PFedHR": System(
        PFedHR(strength=0.5, groups=2, server_epochs=1), LayeredNetworks, MIXED, NETWORKS, Pictures,
        ("pfedhr_network",),
    ),
    "optimizers and statistics that live on": System(
        FedAvg(), SmallViT,
        {"image_size": 4, "dim": 4, "heads": 2, "depth": 1, "dropout": 0.3, "num_classes": CLASSES,
         **SGD},
        ("optimizer_state/",), Pictures, federation={"optimizer_state": "keep", "buffers": "local"},
    ),
}  # fmt: skip
every_system = pytest.mark.parametrize("name", SYSTEMS)


class Listening(pl.Callback):
    """Notes every message: keys up and down, and whose."""

    def __init__(self) -> None:
        self.states: set[str] = set()
        self.extras: set[str] = set()
        self.tensors: list[Tensor] = []

    def on_client_end(self, trainer: Any, pl_module: Any, update: Any) -> None:
        self.states |= set(update.state)
        self.extras |= set(update.extras)
        self.tensors += [value.clone() for value in (*update.state.values(),
                                                     *update.extras.values())]  # fmt: skip


def run(name: str, module: Any = None, cohorts: Any = COHORTS, ckpt: Any = None, **kwargs: Any):
    """Fit three rounds of two local epochs and return the trainer."""
    system = SYSTEMS[name]
    settings = {"local_epochs": 2, **system.federation, **kwargs.pop("federation", {})}
    built = trainer(system.algorithm, cohort=3, federation=settings, **{"rounds": 3, **kwargs})
    loop_of(built).cohort = cohorts.__getitem__
    built.fit(module or system.net(), datamodule=system.make_data(), ckpt_path=ckpt)
    return built


@cache
def whole(name: str) -> Any:
    return run(name)


@every_system
def test_two_runs_give_the_same_bits(name):
    found = everything(whole(name))
    assert all(torch.isfinite(value).all() for value in found.values())
    assert same(found, everything(run(name)))


@every_system
def test_a_run_resumed_after_a_round_gives_the_same_bits(name, tmp_path):
    run(name, rounds=1).save_checkpoint(tmp_path / "one.ckpt")
    resumed = run(name, SYSTEMS[name].net(seed=9), ckpt=tmp_path / "one.ckpt")
    assert same(everything(whole(name)), everything(resumed))


@every_system
@pytest.mark.filterwarnings("ignore:client 2, round 1")
def test_a_skipped_client_leaves_no_trace(name):
    module = SYSTEMS[name].net(at=(1,))
    skipped = run(name, module, federation={"on_client_failure": "skip"})
    assert module.counts.seen >= 1
    assert same(everything(skipped), everything(run(name, cohorts=WITHOUT_TWO)))


@every_system
def test_a_fault_that_passes_leaves_no_trace(name):
    with pytest.warns(UserWarning, match=rf"client {BAD}, round 1: .*\(tried again\)"):
        retried = run(name, SYSTEMS[name].net(at=(2,)), federation={"on_client_failure": "retry"})
    assert same(everything(retried), everything(whole(name)))


@every_system
def test_what_an_unchosen_client_has_kept_does_not_change(name):
    after_one, after_two = (run(name, rounds=rounds) for rounds in (1, 2))
    kept = [loop_of(built).client_store for built in (after_one, after_two)]
    (unchosen,) = set(COHORTS[0]) - set(COHORTS[1]) - {0}
    before, now = (store.get(unchosen) or {} for store in kept)
    assert same(before, now)
    assert bool(before) == bool(SYSTEMS[name].private)


@every_system
def test_what_is_kept_is_in_no_message(name):
    system, heard = SYSTEMS[name], Listening()
    built = run(name, callbacks=[heard])
    keys = set(dict(built.lightning_module.state_dict()))
    assert heard.states == {k for k in keys if not k.startswith(system.private or "/")}
    assert {key.partition("/")[0] for key in heard.extras} == set(system.extras)
    kept = [loop_of(built).client_store.get(client) for client in range(len(SIZES))]
    for own in kept:
        assert all(key.startswith(system.private or "/") for key in own or {})
    if "pfedhr_network" in system.extras:
        return  # clients do send the networks that they keep
    private = [v for own in kept for k, v in (own or {}).items()
               if k.startswith(("private.", "networks."))]  # fmt: skip
    assert not any(a.shape == b.shape and torch.equal(a, b) for a in private
                   for b in heard.tensors)  # fmt: skip


@every_system
def test_two_workers_give_the_bits_of_one(name, tmp_path):
    found = []
    for workers in ({}, {"accelerator": "cpu", "devices": 2, "strategy": "ddp_fork"}):
        folder = tmp_path / str(len(workers))
        run(name, folder=folder, **workers)
        checkpoint = read_checkpoint(next(folder.rglob("last.ckpt")))
        assert loop_state(checkpoint)
        found.append({**checkpoint["state_dict"], **client_states(checkpoint)})
    assert same(*found)


@pytest.mark.parametrize("name", [n for n, s in SYSTEMS.items() if s.algorithm.share != "none"])
@pytest.mark.parametrize("settings", [
    {"aggregator": CoordinateMedian()}, {"aggregator": Krum(0)}, {"uplink": [ClipNorm(1.0)]},
    {"compression": Int8(error_feedback=False)},
], ids=str)  # fmt: skip
def test_it_goes_with_robust_rules_and_stages_of_the_uplink(name, settings):
    if name == "FedDF" and "aggregator" in settings:
        with pytest.raises(ConfigError, match="which looks at every client's update"):
            run(name, federation=settings)
        return
    found = everything(run(name, federation=settings, rounds=2))
    assert all(torch.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("name", [n for n, s in SYSTEMS.items() if s.algorithm.share == "none"])
def test_robust_rules_are_refused_where_nothing_is_averaged(name):
    with pytest.raises(ConfigError, match="shares nothing"):
        run(name, federation={"aggregator": CoordinateMedian()})


@every_system
def test_it_is_refused_where_clients_train_at_once(name):
    with pytest.raises(ConfigError, match="takes part in their steps; set it to 1"):
        run(name, federation={"clients_per_kernel": 2})
