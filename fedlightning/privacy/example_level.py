"""Differential privacy for single examples: DP-SGD in a client's own training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.fednova import LocalProgress
from fedlightning.algorithms.finetuning import FineTuning
from fedlightning.algorithms.method import ClientHook
from fedlightning.algorithms.scaffold import ControlVariates
from fedlightning.core.batches import Batch
from fedlightning.core.messages import Up
from fedlightning.core.seeding import Key
from fedlightning.core.state import State
from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError, EnvironmentFailure
from fedlightning.privacy.accounting import Cohorts, epsilon_of
from fedlightning.privacy.example_ledger import ACCOUNT
from fedlightning.privacy.ledger import Release
from fedlightning.privacy.noise import KeyedNoise, Noise, SystemNoise

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["ExampleDP", "PrivateHead", "PrivateSGD", "privatize"]

Samples = dict[nn.Parameter, Tensor]
"""Gradients of single examples, by parameter."""

_GRID = 2e-3


_FROM_CHANGES = (ControlVariates, LocalProgress)
"""Hooks that send nothing but what follows from private steps and their number."""


class _DPSGD(ClientHook):
    """What both places of DP-SGD have in common: its settings, its noise, its accounts.

    Args:
        noise_multiplier: z.
        max_grad_norm: C.
        batch_size: The expected batch.
        delta: For the accounts.
        secure: Whether to draw batches and noise from the system's randomness.
    """

    needs_global = False

    def __init__(
        self,
        noise_multiplier: float,
        max_grad_norm: float,
        batch_size: int,
        delta: float,
        secure: bool,
    ) -> None:
        self.noise_multiplier = check_number("noise_multiplier", noise_multiplier, at_least=0)
        self.max_grad_norm = check_number("max_grad_norm", max_grad_norm, above=0)
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.delta = check_number("delta", delta, above=0, below=1)
        self.secure = secure

    def epsilon(self, num_examples: int, steps: int, grid: float = 1e-4) -> float:
        """Return epsilon of one client's examples after so many steps.

        Args:
            num_examples: The number of the client's training examples.
            steps: Its optimizer steps so far.
            grid: The step in which privacy losses are rounded, upwards.
        """
        q = self._rate(num_examples)
        cohorts = Cohorts("poisson", q * num_examples, num_examples, q=q)
        return epsilon_of([Release(self.noise_multiplier, steps)], cohorts, self.delta, grid)

    def _rate(self, num_examples: int) -> float:
        return min(1.0, self.batch_size / num_examples)

    def _sources(self, key: Key) -> tuple[np.random.Generator, Noise]:
        """Return what batches are drawn from, and the noise."""
        if self.secure:
            return np.random.default_rng(int.from_bytes(os.urandom(32), "big")), SystemNoise(
                os.urandom(32)
            )
        own = Key(key.seed, "noise", key.round, key.client, epoch=1 + key.epoch)
        return own.numpy(), KeyedNoise(own)

    def _gradient(
        self, parameters: Sequence[nn.Parameter], samples: Samples, count: int, noise: Noise
    ) -> None:
        std = self.noise_multiplier * self.max_grad_norm
        privatize(parameters, samples, self.max_grad_norm, std, self.batch_size, count, noise)


class ExampleDP(_DPSGD):
    r"""DP-SGD in a client's local training.

    Every step draws each of the client's :math:`n` examples with probability :math:`q = B / n` and
    moves by

    .. math:: \frac1B \Big( \sum_j g_j \min\Big(1, \frac{C}{\lVert g_j \rVert}\Big) +
        \mathcal N(0, (zC)^2 I) \Big)

    So the trained part that a client sends hides each single example of it, also from the server,
    and needs no trust in anybody. Metrics have no noise: in a deployment the scores of the received
    model and the means of what the module logs leave the client as they are. A client makes as many
    steps as its ordinary batches would be. Each has its own account, which it keeps: ``q`` and the
    number of steps differ from client to client. Batches are made of the examples in stored order,
    without augmentation.

    Gradients of single examples are made by Opacus' hooks, on the module itself: its keys do not
    change. Layers that mix examples (BatchNorm) are refused. Needs
    ``pip install 'fedlightning[opacus,dp]'``.

    Args:
        noise_multiplier: :math:`z`, >= 0.
        max_grad_norm: :math:`C`, > 0.
        batch_size: :math:`B`, the expected size of a batch; ``data.batch_size``, as a rule.
        delta: :math:`\delta` of the accounts, in (0, 1).
        secure: Draw batches and noise from the system's source of randomness.

    Raises:
        ConfigError: If a value is out of its range.

    Source:
        Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang. Deep Learning with Differential
        Privacy. CCS 2016. https://arxiv.org/abs/1607.00133

    Example:
        >>> hook = ExampleDP(noise_multiplier=1.0, max_grad_norm=1.0, batch_size=10)
        >>> round(hook.epsilon(num_examples=500, steps=250), 1)
        2.0
    """

    def __init__(
        self,
        noise_multiplier: float,
        max_grad_norm: float = 1.0,
        batch_size: int = 10,
        delta: float = 1e-5,
        secure: bool = False,
    ) -> None:
        super().__init__(noise_multiplier, max_grad_norm, batch_size, delta, secure)

    def clash(self, other: ClientHook) -> str | None:
        """Return why this hook and another one cannot be in the same update, or ``None``."""
        if other.changes_loss:
            return f"{type(other).__name__} changes the loss, of which not every term is an example"
        sent = [message.name for message in other.messages if isinstance(message, Up)]
        if sent and not isinstance(other, _FROM_CHANGES):
            return (
                f"{type(other).__name__} sends {sent[0]!r}, which is taken from examples and has "
                "no noise"
            )
        return super().clash(other)

    def on_update_start(self, context: ClientContext) -> None:
        """Look at the client's examples."""
        examples = _joined(list(context.stored_batches()))
        context.scratch[ACCOUNT] = examples, *self._sources(context.key)
        context.scratch[f"{ACCOUNT}/steps"] = 0

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Take a step on examples drawn one by one; the loop's own batch is not looked at."""
        examples, generator, noise = context.scratch[ACCOUNT]
        chosen = np.flatnonzero(
            generator.random(context.num_examples) < self._rate(context.num_examples)
        )
        loss: Tensor | None = None
        samples: Samples = {}
        if chosen.size:
            with example_gradients(context.module) as samples:
                loss = context.gradient(_taken(examples, torch.from_numpy(chosen)), batch_idx)
        self._gradient(list(context.parameters.values()), samples, chosen.size, noise)
        context.scratch[f"{ACCOUNT}/steps"] += 1
        context.update(batch_idx)
        return loss

    def on_update_end(self, context: ClientContext) -> None:
        """Keep the client's account: numbers of examples and of steps so far."""
        before = context.kept_values(ACCOUNT)
        steps = context.scratch[f"{ACCOUNT}/steps"] + (int(before[1]) if before is not None else 0)
        context.keep_values(ACCOUNT, torch.tensor([context.num_examples, steps], dtype=torch.int64))

    def worst(self, kept: Iterator[Mapping[str, Tensor]]) -> tuple[int, float]:
        """Return how many clients have accounts, and the largest epsilon among them.

        Args:
            kept: What each client has kept.
        """
        accounts = [tuple(state[ACCOUNT].tolist()) for state in kept if ACCOUNT in state]
        front: list[tuple[int, int]] = []
        for examples, steps in sorted(set(accounts), key=lambda each: (each[0], -each[1])):
            if not front or steps > front[-1][1]:  # epsilon grows with steps, and with fewer others
                front.append((examples, steps))
        return len(accounts), max((self.epsilon(n, s, _GRID) for n, s in front), default=0.0)


class PrivateSGD(Algorithm):
    """DP-SGD at the clients, to be composed with any algorithm that shares something.

    Args:
        noise_multiplier: See :class:`ExampleDP`.
        max_grad_norm: See :class:`ExampleDP`.
        batch_size: See :class:`ExampleDP`.
        delta: See :class:`ExampleDP`.
        secure: See :class:`ExampleDP`.
        **choices: Those of :class:`Algorithm`.

    Example:
        >>> from fedlightning.algorithms import FedBABU
        >>> (FedBABU() + PrivateSGD(noise_multiplier=1.0)).name
        'FedBABU + PrivateSGD'
    """

    def __init__(
        self,
        noise_multiplier: float,
        max_grad_norm: float = 1.0,
        batch_size: int = 10,
        delta: float = 1e-5,
        secure: bool = False,
        **choices: Any,
    ) -> None:
        hook = ExampleDP(noise_multiplier, max_grad_norm, batch_size, delta, secure)
        super().__init__(local=[hook], **choices)


class PrivateHead(_DPSGD):
    r"""Fine-tuning by DP-SGD, so that a client's own model hides each of its examples, too.

    It takes the place of :class:`PersonalizationCallback`'s epochs: set those to 0, and ``part`` to
    what is fine-tuned. The loss is cross-entropy, whatever the module trains with, in eval mode.
    Epsilon of a client is ``epsilon(n, epochs * ceil(n / batch_size))``; it adds to
    that of the training before.

    Args:
        noise_multiplier: :math:`z`, >= 0.
        max_grad_norm: :math:`C`, > 0.
        batch_size: The expected size of a batch.
        epochs: Passes, of as many steps as ordinary batches would be.
        lr: Learning rate of plain SGD.
        delta: :math:`\delta` of the accounts.
        secure: Draw batches and noise from the system's source of randomness.

    Raises:
        ConfigError: If a value is out of its range.

    Example:
        >>> Algorithm(local=[PrivateHead(noise_multiplier=1.0, lr=0.5)]).local[0].steps(25)
        15
    """

    def __init__(
        self,
        noise_multiplier: float,
        max_grad_norm: float = 1.0,
        batch_size: int = 10,
        epochs: int = 5,
        lr: float = 0.1,
        delta: float = 1e-5,
        secure: bool = False,
    ) -> None:
        super().__init__(noise_multiplier, max_grad_norm, batch_size, delta, secure)
        self.epochs = check_integer("epochs", epochs, at_least=1)
        self.lr = check_number("lr", lr, above=0)

    def steps(self, num_examples: int) -> int:
        """Return how many steps a client with so many examples makes."""
        return self.epochs * -(-num_examples // self.batch_size)

    def fit_personal(self, tuning: FineTuning) -> State:
        """Return the fine-tuned part."""
        count, module = tuning.num_examples("train"), tuning.module
        if not count:
            return {}
        inputs, targets = _joined(list(tuning.batches("train")))
        generator, noise = self._sources(Key(_drawn(), "noise", client=tuning.client))
        named = dict(module.named_parameters())
        own = {key: named[key] for key in tuning.keys if key in named}
        before = {key: value.detach().clone() for key, value in own.items()}
        flags = {parameter: parameter.requires_grad for parameter in named.values()}
        layers = [m for m in module.modules() if set(m.parameters(recurse=False)) & {*own.values()}]
        try:
            for layer in layers:  # those are the ones that Opacus looks at
                layer.training = True
            for parameter in named.values():
                parameter.requires_grad_(False)
            for parameter in own.values():
                parameter.requires_grad_(True)
            for _ in range(self.steps(count)):
                chosen = np.flatnonzero(generator.random(count) < self._rate(count))
                samples: Samples = {}
                if chosen.size:
                    rows = torch.from_numpy(chosen).to(inputs.device)
                    with torch.enable_grad(), example_gradients(module) as samples:
                        F.cross_entropy(module(inputs[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
                self._gradient(list(own.values()), samples, chosen.size, noise)
                for parameter in own.values():
                    assert parameter.grad is not None, "written by privatize()"
                    parameter.data.sub_(parameter.grad, alpha=self.lr)
                    parameter.grad = None
            return {key: value.detach().clone() for key, value in own.items()}
        finally:
            for layer in layers:
                layer.training = False
            with torch.no_grad():
                for key, parameter in own.items():
                    parameter.copy_(before[key])
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)


@contextmanager
def example_gradients(module: nn.Module) -> Iterator[Samples]:
    """Yield what has, after the block, the gradients of its backward pass, example by example.

    Raises:
        EnvironmentFailure: If Opacus is missing.
        ConfigError: If a layer mixes examples.
    """
    try:
        from opacus.grad_sample.grad_sample_module import GradSampleHooks
    except ImportError as error:
        raise EnvironmentFailure(
            f"gradients of single examples need the package opacus ({error}): "
            "pip install 'fedlightning[opacus]'."
        ) from error
    try:
        hooks = GradSampleHooks(module, batch_first=True, loss_reduction="mean")
    except NotImplementedError as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{type(module).__name__} has layers that mix examples or keep statistics of them, so "
            f"no example's gradient can be told from the others' ({text}); use GroupNorm."
        ) from error
    for name, layer in module.named_modules():  # Opacus looks at layers with parameters alone
        if isinstance(layer, _NormBase) and layer.training and _looks_at_others(layer):
            hooks.cleanup()
            raise ConfigError(
                f"{name} of {type(module).__name__} is a layer that mixes examples or keeps "
                f"statistics of them ({type(layer).__name__}, with parameters that do not train or "
                "none), so no example's gradient can be told from the others'; use GroupNorm, or "
                "put it into eval mode."
            )
    samples: Samples = {}
    try:
        yield samples
        found = ((each, getattr(each, "grad_sample", None)) for each in module.parameters())
        samples |= {each: value for each, value in found if isinstance(value, Tensor)}
    finally:
        hooks.cleanup()


@torch.no_grad()
def privatize(
    parameters: Sequence[nn.Parameter],
    samples: Samples,
    max_norm: float,
    std: float,
    expected: int,
    count: int,
    noise: Noise,
) -> None:
    """Write into ``grad`` the clipped sum of gradients of examples, with noise, over a constant.

    Args:
        parameters: What is trained.
        samples: Gradients of single examples, of shape (examples, ...).
        max_norm: The largest norm of one example's gradient, over all parameters together.
        std: The standard deviation of the noise on the sum.
        expected: What the sum is divided by.
        count: The number of examples; with none there is noise alone.
        noise: Standard normal numbers.

    Raises:
        ConfigError: If a parameter has no gradients of single examples.
    """
    gradients: list[Tensor] = []
    for parameter in parameters:
        if count and parameter not in samples:
            raise ConfigError(
                f"a parameter of shape {tuple(parameter.shape)} has no gradients of single "
                "examples: it is used outside a layer that Opacus knows, or more than once."
            )
        gradients.append(samples[parameter] if count else parameter.new_zeros(0, *parameter.shape))
    norms = torch.stack([g.flatten(1).double().norm(dim=1) for g in gradients]).norm(dim=0)
    share = (max_norm / norms.clamp(min=max_norm)).nan_to_num(0.0, 0.0, 0.0)
    for parameter, sample in zip(parameters, gradients, strict=True):
        bounded = sample.nan_to_num(0.0, 0.0, 0.0).double()
        total = torch.einsum("n,n...->...", share, bounded)
        if std:
            total = total + std * noise.normal(parameter.shape).to(total)
        parameter.grad = (total / expected).to(parameter.dtype)


def _looks_at_others(layer: _NormBase) -> bool:
    """Return whether a layer's output or its statistics depend on several examples at once."""
    return not isinstance(layer, _InstanceNorm) or layer.track_running_stats


def _joined(batches: Sequence[Any]) -> Any:
    """Return batches as one, whatever tuples and dicts of tensors they are."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches))
    if isinstance(first, Mapping):
        return {key: _joined([batch[key] for batch in batches]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_joined(part) for part in zip(*batches, strict=True))
    raise ConfigError(
        f"ExampleDP draws examples from batches of tensors, got {type(first).__name__}; have the "
        "data give tuples or dicts of tensors."
    )


def _taken(examples: Any, rows: Tensor) -> Any:
    if isinstance(examples, Tensor):
        return examples[rows.to(examples.device)]
    if isinstance(examples, Mapping):
        return {key: _taken(value, rows) for key, value in examples.items()}
    return tuple(_taken(value, rows) for value in examples)


def _drawn() -> int:
    """Return a number of the global generator, which is seeded for the client."""
    return int(torch.randint(2**62, ()))
