"""What needs a GPU: same bits again and on two of them, precision, layout, resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedlightning import SCAFFOLD, Algorithm, FedBABU, PersonalizationCallback
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import CheckpointError
from fedlightning.models import Conv4
from tests.toys import examples, fit, net, same, state

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

KEPT = Algorithm(train="full", share="body")
GPU = {"accelerator": "gpu", "devices": 1}


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    """CUDA's kernels are as repeatable as the CPU's only if they are told to."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def last(folder: Path) -> dict[str, object]:
    [path] = folder.rglob("last.ckpt")
    return torch.load(path, weights_only=True, map_location="cpu")


@pytest.mark.parametrize("algorithm", [FedBABU(), KEPT, SCAFFOLD()], ids=lambda a: a.name)
def test_a_run_gives_the_same_bits_again(algorithm):
    one, other = net(dropout=0.3), net(dropout=0.3)
    for module in (one, other):
        fit(module, algorithm, cohort=3, **GPU)
    assert same(state(one), state(other))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_have_the_bits_of_one(tmp_path):
    for devices in (1, 2):
        strategy = "auto" if devices == 1 else "ddp_spawn"
        fit(
            net(), KEPT, cohort=4, folder=tmp_path / str(devices), accelerator="gpu",
            devices=devices, strategy=strategy,
        )  # fmt: skip
    first, second = last(tmp_path / "1"), last(tmp_path / "2")
    assert same(first["state_dict"], second["state_dict"])


def test_a_gpu_is_as_near_to_the_cpu_as_their_kernels():
    one, other = net(), net()
    fit(one, FedBABU(), cohort=3, accelerator="cpu")
    fit(other, FedBABU(), cohort=3, **GPU)
    for key, value in state(one).items():
        torch.testing.assert_close(state(other)[key].cpu(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_every_precision_trains_and_personalizes(precision):
    module = net()
    before = state(module)
    built = fit(
        module, FedBABU(), cohort=3, precision=precision, callbacks=[PersonalizationCallback()],
        **GPU,
    )  # fmt: skip
    assert not same(before, {key: value.cpu() for key, value in state(module).items()})
    assert 0 <= float(built.callback_metrics["personalized/acc"]) <= 1
    assert all(value.dtype is torch.float32 for value in module.parameters())


def test_convolutions_are_trained_channels_last():
    module = Conv4(in_channels=3, num_classes=3)
    inputs = torch.randn(12, 3, 32, 32)
    pairs = [(inputs, torch.arange(12) % 3)] * 2
    clients = ClientDatasets(train=pairs, test=pairs, num_classes=3, batch_size=6)
    seen: list[bool] = []
    module.body.register_forward_pre_hook(
        lambda layer, given: seen.append(
            next(layer.parameters()).is_contiguous(memory_format=torch.channels_last)
        )
    )
    torch.use_deterministic_algorithms(False)
    fit(module, FedBABU(), rounds=1, datamodule=clients, **GPU)
    assert seen
    assert all(seen)


def test_a_run_resumes_to_the_bits_of_one_that_went_through(tmp_path):
    whole = net(dropout=0.3, lr_milestones=())
    fit(whole, KEPT, rounds=3, cohort=3, folder=tmp_path / "whole", **GPU)
    fit(net(dropout=0.3, lr_milestones=()), KEPT, rounds=1, cohort=3, folder=tmp_path / "a", **GPU)
    resumed = net(seed=4, dropout=0.3, lr_milestones=())
    fit(resumed, KEPT, rounds=3, cohort=3, folder=tmp_path / "a", ckpt="last", **GPU)
    assert same(state(resumed), state(whole))


def test_a_run_of_the_cpu_is_not_continued_on_a_gpu(tmp_path):
    fit(net(), KEPT, rounds=1, cohort=3, folder=tmp_path, accelerator="cpu")
    with pytest.raises(CheckpointError, match=r"trainer\.accelerator: cpu -> cuda"):
        fit(net(), KEPT, rounds=2, cohort=3, folder=tmp_path, ckpt="last", **GPU)


class Pinned(ClientDatasets):
    """Gives batches in the CPU's pinned memory; they are moved as batches of a DataLoader are."""

    def batches(self, *args, **kwargs):
        for x, y in super().batches(*args, **kwargs):
            yield x.cpu().pin_memory(), y.cpu().pin_memory()


def test_batches_of_pinned_memory_are_moved():
    pairs = [examples(size, seed=size) for size in (8, 6, 7, 5)]
    one, other = net(), net()
    for module, kind in ((one, ClientDatasets), (other, Pinned)):
        clients = kind(train=pairs, test=pairs, num_classes=3, batch_size=4)
        fit(module, FedBABU(), cohort=3, datamodule=clients, **GPU)
    assert same(state(one), state(other))
