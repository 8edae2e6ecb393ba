"""DP-SGD at a client: one example at a time, its noise, its accounts, and private heads."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("opacus", reason="needs the extra opacus")
dp = pytest.importorskip("dp_accounting", reason="needs the extra dp")

from scipy import stats  # noqa: E402

from fedlightning import (  # noqa: E402
    IFCA,
    MOON,
    SCAFFOLD,
    Algorithm,
    ClientDP,
    FedAvg,
    FedBABU,
    Federation,
    FedProx,
    PersonalizationCallback,
    PrivateHead,
    PrivateSGD,
    ServerData,
)
from fedlightning.callbacks import RunRecord  # noqa: E402
from fedlightning.core.seeding import Key  # noqa: E402
from fedlightning.errors import ConfigError, EnvironmentFailure  # noqa: E402
from fedlightning.privacy import ExampleDP, KeyedNoise, SystemNoise  # noqa: E402
from fedlightning.privacy.example_level import example_gradients, privatize  # noqa: E402
from tests.engine.test_resume import Stop, StopAt  # noqa: E402
from tests.toys import data, examples, loop_of, net, same, state, trainer  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:federation.privacy:UserWarning"),
]

SIZES = (8, 6, 7, 5)


def fitted(algorithm, module=None, rounds=1, folder=None, devices=1, ckpt=None, **more):
    module = module if module is not None else net(dropout=0.0)
    several = {"devices": 2, "accelerator": "cpu", "strategy": "ddp_fork"} if devices > 1 else {}
    built = trainer(
        algorithm, rounds, more.pop("cohort", 1.0), folder,
        {"seed": 1, **more.pop("federation", {})}, **several, **more,
    )  # fmt: skip
    built.fit(module, datamodule=data(SIZES), ckpt_path=ckpt)
    return built, module


def one_at_a_time(module: nn.Module, x, y, max_norm: float) -> dict[str, torch.Tensor]:
    """Return the sum of clipped gradients, each from a backward pass of its own."""
    total = {k: torch.zeros_like(p) for k, p in module.named_parameters() if p.requires_grad}
    for at in range(len(x)):
        module.zero_grad()
        F.cross_entropy(module(x[at : at + 1]), y[at : at + 1]).backward()
        gradients = {k: p.grad.clone() for k, p in module.named_parameters() if p.requires_grad}
        norm = float(torch.sqrt(sum(g.double().square().sum() for g in gradients.values())))
        for key, gradient in gradients.items():
            total[key] += min(1.0, max_norm / norm) * gradient
    module.zero_grad()
    return total


@pytest.mark.parametrize("max_norm", [0.05, 100.0])
def test_without_noise_a_turn_is_made_of_one_example_at_a_time(max_norm):
    """Batches as large as the data hold every example: SGD with momentum, by plain loops."""
    algorithm = FedAvg() + PrivateSGD(0.0, max_grad_norm=max_norm, batch_size=99)
    _, module = fitted(algorithm, cohort=1, federation={"sampler": None, "seed": 1})
    (client,) = loop_of(_).cohort(0)
    by_hand, (x, y) = net(dropout=0.0), examples(SIZES[client], client)
    momentum = {k: torch.zeros_like(p) for k, p in by_hand.named_parameters()}
    for _ in range(2):  # batches of 4 make two steps
        gradients = one_at_a_time(by_hand, x, y, max_norm)
        with torch.no_grad():
            for key, parameter in by_hand.named_parameters():
                momentum[key] = 0.9 * momentum[key] + gradients[key] / 99
                parameter -= 0.1 * momentum[key]
    for key, value in state(by_hand).items():
        torch.testing.assert_close(state(module)[key], value, rtol=1e-6, atol=1e-6)


def check_clip(privatized) -> None:
    """Any two batches that differ by an example have sums that differ by C at most."""
    module = net(dropout=0.0)
    x, y = examples(2, 0)
    x[1] *= 1e6
    y[1] = module(x[1:]).argmin()  # as wrong as can be
    sums = []
    for rows in (1, 2):
        with example_gradients(module) as samples:
            F.cross_entropy(module(x[:rows]), y[:rows]).backward()
        parameters = list(module.parameters())
        privatized(parameters, samples, 0.3, 0.0, 4, rows, KeyedNoise(Key(0, "noise")))
        sums.append(torch.cat([p.grad.reshape(-1).double() for p in parameters]))
        module.zero_grad()
    apart = float((sums[1] - sums[0]).norm())
    assert 0 < apart <= 0.3 / 4 + 1e-7


def test_an_example_moves_the_gradient_by_its_norm_at_most():
    check_clip(privatize)


def test_mutants_that_clip_or_divide_otherwise_are_found_out():
    def by_batch(parameters, samples, max_norm, std, expected, count, noise):
        privatize(parameters, samples, max_norm, std, count, count, noise)

    def layer_by_layer(parameters, samples, max_norm, std, expected, count, noise):
        for parameter in parameters:
            privatize([parameter], samples, max_norm, std, expected, count, noise)

    for mutant in (by_batch, layer_by_layer):
        with pytest.raises(AssertionError):
            check_clip(mutant)


def test_noise_is_normal_and_there_without_examples():
    parameter = nn.Parameter(torch.zeros(50_000))
    privatize([parameter], {}, 0.5, 0.5 * 1.2, 8, 0, KeyedNoise(Key(0, "noise")))
    std = 0.5 * 1.2 / 8
    assert stats.kstest(parameter.grad.double().numpy() / std, "norm").pvalue > 1e-3


class Look(pl.Callback):
    """Notes the sizes of batches, and what is left on the module between clients."""

    def __init__(self):
        self.sizes, self.left = [], []

    def on_local_loss(self, trainer, module, context, batch, loss):
        self.sizes.append(len(batch[1]))

    def on_client_end(self, trainer, module, update):
        self.left += [n for n, p in module.named_parameters() if hasattr(p, "grad_sample")]
        self.left += [m for m in module.modules() if m._forward_hooks or m._backward_hooks]


def test_batches_are_drawn_example_by_example_and_nothing_is_left_on_the_module():
    look = Look()
    algorithm = FedBABU() + PrivateSGD(0.1, batch_size=2)
    _, module = fitted(
        algorithm, rounds=25, callbacks=[look], federation={"local_epochs": 2, "seed": 1}
    )
    assert not look.left
    steps = 25 * 2 * (2 + 2 + 2 + 2)
    assert 0 < len(look.sizes) < steps  # some batches were empty
    mean = sum(look.sizes) / steps
    assert mean == pytest.approx(2.0, abs=3 * np.sqrt(2.0 / steps))
    assert not hasattr(module, "autograd_grad_sample_hooks")
    assert all(torch.equal(state(module)[k], v) for k, v in state(net(dropout=0.0)).items()
               if k.startswith("head"))  # fmt: skip


def test_each_client_keeps_its_own_account(capsys, tmp_path):
    algorithm = FedBABU() + PrivateSGD(1.0, batch_size=2)
    built, _ = fitted(algorithm, rounds=3, folder=tmp_path)
    hook = next(h for h in built.federation.algorithm.hooks if isinstance(h, ExampleDP))
    store = loop_of(built).client_store
    kept = {client: store.get(client)["example_dp"].tolist() for client in store}
    assert kept == {c: [n, 3 * 2] for c, n in enumerate(SIZES)}
    from dp_accounting import pld

    spent = []
    for n in SIZES:
        accountant = pld.PLDAccountant()
        accountant.compose(dp.PoissonSampledDpEvent(2 / n, dp.GaussianDpEvent(1.0)), 6)
        spent.append(accountant.get_epsilon(1e-5))
        assert hook.epsilon(n, 6) == pytest.approx(spent[-1], abs=1e-9)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"privacy of examples: epsilon <= {max(spent):.3g}" in printed
    assert "for each of 4 clients that trained" in printed


def test_it_resumes_to_the_same_bits_and_workers_agree(tmp_path):
    whole = check_resume(tmp_path)
    _, second = fitted(FedBABU() + PrivateSGD(1.0, batch_size=2), rounds=3, devices=2)
    assert same(state(whole), state(second))


def check_resume(tmp_path) -> nn.Module:
    algorithm = FedBABU() + PrivateSGD(1.0, batch_size=2)
    _, whole = fitted(algorithm, rounds=3)
    crash = StopAt("on_aggregate_end", 2)
    with pytest.raises(Stop):
        fitted(algorithm, rounds=3, folder=tmp_path, callbacks=[crash])
    _, resumed = fitted(algorithm, rounds=3, folder=tmp_path, ckpt="last")
    assert same(state(whole), state(resumed))
    return whole


def test_a_mutant_whose_noise_follows_from_nothing_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(
        ExampleDP, "_sources", lambda *_: (np.random.default_rng(), SystemNoise(os.urandom(32)))
    )
    with pytest.raises(AssertionError):
        check_resume(tmp_path)


def test_it_goes_with_client_level_privacy_and_a_proximal_term():
    for algorithm in (FedBABU() + PrivateSGD(1.0), FedProx(mu=0.1) + PrivateSGD(1.0)):
        _, module = fitted(
            algorithm, federation={"seed": 1, "privacy": ClientDP(noise_multiplier=1.0)}
        )
        assert all(torch.isfinite(value).all() for value in state(module).values())


def test_secure_noise_does_not_follow_from_the_seed():
    models = [
        state(fitted(FedBABU() + PrivateSGD(1.0, secure=True))[1]) for _ in range(2)
    ]  # fmt: skip
    assert not same(*models)


def test_what_cannot_be_private_is_refused(monkeypatch):
    built = trainer(FedAvg() + PrivateSGD(1.0), 1, 1.0)
    with pytest.raises(ConfigError, match="layers that mix examples or keep statistics"):
        built.fit(net(norm=True), datamodule=data((8, 6)))
    with pytest.raises(ConfigError, match="changes the loss, of which not every term is an"):
        _ = MOON() + PrivateSGD(1.0)
    for wrong in ({"noise_multiplier": -1.0}, {"max_grad_norm": 0.0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PrivateSGD(**{"noise_multiplier": 1.0, **wrong})
    monkeypatch.setitem(__import__("sys").modules, "opacus.grad_sample.grad_sample_module", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'fedlightning\[opacus\]'"):
        fitted(FedBABU() + PrivateSGD(1.0))


def test_batchnorm_without_parameters_that_train_is_refused_too():
    """Opacus looks at layers that train alone; such a one mixes examples all the same."""
    for norm in (nn.BatchNorm1d(5, affine=False), nn.BatchNorm1d(5).requires_grad_(False)):
        module = nn.Sequential(nn.Linear(4, 5), norm, nn.Linear(5, 2))
        with pytest.raises(ConfigError, match="1 of Sequential"), example_gradients(module):
            pass
        assert not hasattr(module[0], "autograd_grad_sample_hooks")
        norm.eval()
        with example_gradients(module):
            pass
    tracked = nn.Sequential(nn.InstanceNorm1d(5, track_running_stats=True), nn.Linear(5, 2))
    with pytest.raises(ConfigError, match="keeps statistics of them"), example_gradients(tracked):
        pass


# -- heads -----------------------------------------------------------------------------------------


def personal(hook, rounds=1, seed=0):
    module = net(seed=seed, dropout=0.0)
    callback = PersonalizationCallback(part="head", epochs=0)
    built, module = fitted(
        FedBABU() + Algorithm(local=[hook]), module=module, rounds=rounds, callbacks=[callback]
    )
    return built, module, callback


def test_a_private_head_without_noise_is_that_of_plain_gradient_descent():
    hook = PrivateHead(0.0, max_grad_norm=100.0, batch_size=99, epochs=3, lr=0.5)
    built, module, _ = personal(hook)
    body = {k: v for k, v in state(module).items() if k.startswith("body")}
    for client, size in enumerate(SIZES):
        assert hook.steps(size) == 3
        own = copy.deepcopy(module).eval()
        x, y = examples(size, client)
        head = list(own.head.parameters())
        for _ in range(3):
            loss = F.cross_entropy(own(x), y, reduction="sum") / 99
            for parameter, gradient in zip(head, torch.autograd.grad(loss, head), strict=True):
                parameter.data -= 0.5 * gradient
        found = tuned(built, client)
        assert set(found) == {"head.weight", "head.bias"}
        for key, value in found.items():
            torch.testing.assert_close(value, own.state_dict()[key], rtol=1e-5, atol=1e-6)
    assert same({k: v for k, v in state(module).items() if k.startswith("body")}, body)


def tuned(built, client):
    from fedlightning.algorithms.finetuning import FineTuning

    loop = loop_of(built)
    module, hook = built.lightning_module, built.federation.algorithm.hooks[0]
    module.eval()
    with torch.random.fork_rng():
        torch.manual_seed(client)
        return hook.fit_personal(
            FineTuning(
                client, module, state(module), ("head.weight", "head.bias"),
                class_counts=lambda classes: torch.zeros(classes),
                num_examples=lambda split: loop.data.num_examples(client, split),
                batches=lambda split: loop.data.batches(client, split),
            )
        )  # fmt: skip


def test_a_private_head_is_clipped_and_noised_and_is_what_is_measured():
    quiet, loud = (PrivateHead(z, 0.2, batch_size=4, epochs=2, lr=0.5) for z in (0.0, 50.0))
    built, module, _ = personal(quiet)
    for client, size in enumerate(SIZES):
        moved = torch.cat(
            [(v - state(module)[k]).reshape(-1) for k, v in tuned(built, client).items()]
        )
        assert 0 < float(moved.norm()) <= quiet.steps(size) * 0.5 * 0.2 * size / 4
    noisy, noisy_module, callback = personal(loud)
    assert same(state(module), state(noisy_module))  # the global model is the same
    moved = torch.cat([(v - state(noisy_module)[k]).reshape(-1)
                       for k, v in tuned(noisy, 0).items()])  # fmt: skip
    std = 0.5 * 50.0 * 0.2 / 4 * np.sqrt(loud.steps(SIZES[0]))
    assert float(moved.std()) == pytest.approx(std, rel=0.5)
    assert len(callback.results) == len(SIZES)


@pytest.mark.parametrize("epochs", [None, 0])
def test_the_summary_says_that_private_heads_are_not_counted(capsys, epochs):
    """Without a callback that personalizes, nobody has such a head."""
    hook = PrivateHead(1.0, delta=1e-3)
    built = trainer(
        FedBABU() + Algorithm(local=[hook]), 1, 1.0,
        callbacks=[RunRecord(), *([PersonalizationCallback(epochs=0)] if epochs == 0 else [])],
    )  # fmt: skip
    built.fit(net(dropout=0.0), datamodule=data(SIZES))
    printed = " ".join(capsys.readouterr().out.split())
    said = "epsilon(n, steps(n)) more, at delta = 0.001"
    assert ("parts: not counted" in printed and said in printed) == (epochs == 0)
    assert "privacy of examples" not in printed


def test_what_is_sent_beside_private_steps_is_refused():
    with pytest.raises(ConfigError, match=r"BestCluster sends .* has no noise"):
        Federation(PrivateSGD(1.0) + IFCA(2))


def test_control_variates_follow_from_private_steps():
    assert Federation(PrivateSGD(1.0) + SCAFFOLD()).algorithm.hooks


def test_a_server_that_trains_on_clients_examples_is_refused():
    with pytest.raises(ConfigError, match="leave ServerData out"):
        Federation(PrivateSGD(1.0) + ServerData(0.1))
