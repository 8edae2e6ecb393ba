"""Fine-tuning the global model to one client after another, and what that gains."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from fedlightning.client import LocalFit
from fedlightning.datamodules import ClientTask
from fedlightning.errors import ConfigError
from fedlightning.local_log import LocalLog
from fedlightning.loop import FederatedLoop
from fedlightning.module import freeze
from fedlightning.optimizers import FreshOptimizers
from fedlightning.parts import Part, Parts, State, copy_into, live_state
from fedlightning.reporting import ClientRecord
from fedlightning.seeding import Key

__all__ = ["MakeOptimizer", "PersonalResult", "Personalizer", "nearest_mean_accuracy"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class PersonalResult:
    """One client before and after fine-tuning.

    Args:
        record: Accuracy and loss, and how many examples they rest on.
        before: All that the module logs on the client's test data, by short name.
        after: The same after fine-tuning.
        nearest_mean_acc: Test accuracy of the nearest class mean in feature space; nan if unknown.
    """

    record: ClientRecord
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    nearest_mean_acc: float = math.nan


class Personalizer:
    """Fine-tunes the resident module for one client at a time, from the global model.

    Inside ``with personalizer.at_work():`` the module may be anything; afterwards it is the global
    model again, with the modes, gradient flags and optimizers that it had.

    Args:
        loop: The loop whose module, data and kept personal states are used.
        part: What is fine-tuned.
        epochs: Passes over the client's training data.
        make_optimizer: Builds the optimizer of the part's parameters.
        nearest_mean: Whether to measure the accuracy without the head, too.
    """

    def __init__(
        self,
        loop: FederatedLoop,
        part: Part,
        epochs: int,
        make_optimizer: MakeOptimizer,
        nearest_mean: bool = True,
    ) -> None:
        self._loop = loop
        self._part: Part = part
        self._epochs = epochs
        self._make_optimizer = make_optimizer
        self._head = head_module(loop.module, loop.parts) if nearest_mean else None

    @contextmanager
    def at_work(self) -> Iterator[Personalizer]:
        """Make ready to fine-tune; put everything back at the end."""
        loop, module, strategy = self._loop, self._loop.module, self._loop.trainer.strategy
        modes = {child: child.training for child in module.modules()}
        flags = {p: p.requires_grad for p in module.parameters()}
        optimizers, schedulers = strategy.optimizers, strategy.lr_scheduler_configs
        if len(optimizers) > 1:
            raise ConfigError(
                f"personalization fine-tunes with one optimizer, {type(module).__name__} has "
                f"{len(optimizers)}."
            )
        self._stashed = optimizers, schedulers
        self._global: State = {key: value.clone() for key, value in live_state(module).items()}
        with torch.inference_mode(False), torch.enable_grad():
            try:
                self._make_trainable()
                strategy.optimizers = [self._make_optimizer(self._trainable())]
                strategy.lr_scheduler_configs = []
                self._fresh = FreshOptimizers(strategy.optimizers, [])
                loop.visitor = self
                self._fit = LocalFit(
                    loop.trainer, module, loop.data, loop.choose_step(), LocalLog(module)
                )
                yield self
            finally:
                loop.visitor = None
                self._restore()
                strategy.optimizers, strategy.lr_scheduler_configs = optimizers, schedulers
                for parameter, flag in flags.items():
                    parameter.requires_grad_(flag)
                for child, mode in modes.items():
                    child.training = mode

    def client(self, client: int) -> PersonalResult:
        """Evaluate, fine-tune, evaluate; the fine-tuned model is in the module until the next call.

        A client without test data is only counted: nothing could be said of its model.
        """
        loop, data = self._loop, self._loop.data
        num_train, num_test = data.num_examples(client), data.num_examples(client, "test")
        if num_test == 0:
            nan = math.nan
            return PersonalResult(ClientRecord(client, num_train, 0, nan, nan, nan, nan))
        self._restore()
        copy_into(live_state(loop.module), loop.personal.get(client) or {})
        before = self._evaluate(client, num_test)
        nearest = self._nearest_mean(client)
        self._set_modes()
        if num_train:
            self._fit.run(client, Key(loop.seed, "personalize", client=client), self._epochs)
        after = self._evaluate(client, num_test)
        record = ClientRecord(
            client_id=client,
            num_train=num_train,
            num_test=num_test,
            acc_before=before.get("acc", math.nan),
            acc_after=after.get("acc", math.nan),
            loss_before=before.get("loss", math.nan),
            loss_after=after.get("loss", math.nan),
        )
        return PersonalResult(record, before, after, nearest)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Show the global model and its optimizers, in the middle of a client's fine-tuning."""
        module, strategy = self._loop.module, self._loop.trainer.strategy
        local = {key: value.clone() for key, value in live_state(module).items()}
        own = strategy.optimizers, strategy.lr_scheduler_configs
        copy_into(live_state(module), self._global)
        strategy.optimizers, strategy.lr_scheduler_configs = self._stashed
        try:
            yield
        finally:
            strategy.optimizers, strategy.lr_scheduler_configs = own
            copy_into(live_state(module), local)

    def _make_trainable(self) -> None:
        """Thaw what the algorithm has frozen, not what the user has."""
        module = self._loop.module
        for key, parameter in module.named_parameters():
            parameter.requires_grad_(self._loop.trainable.get(key, parameter.requires_grad))
        if self._part != "full":
            freeze(module, self._loop.parts, "head" if self._part == "body" else "body")

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self._loop.module.parameters() if p.requires_grad]

    def _set_modes(self) -> None:
        """Train mode; in head mode the body stays in eval mode, so its BatchNorm does not move."""
        module = self._loop.module
        module.train(self._part != "head")
        if self._part == "head":
            head = set(self._loop.parts.head)
            for path, child in module.named_modules():
                keys = {f"{path}.{key}" for key in child.state_dict()}
                if keys and keys <= head:
                    child.train()

    def _restore(self) -> None:
        copy_into(live_state(self._loop.module), self._global)
        if hasattr(self, "_fresh"):
            self._fresh.restore()

    def _evaluate(self, client: int, num_test: int) -> dict[str, float]:
        self._loop.module.eval()
        scores = self._loop.evaluator.evaluate(ClientTask(client, "test", num_test))
        return {_short_name(name): value for name, value in scores.items()}

    @torch.no_grad()
    def _nearest_mean(self, client: int) -> float:
        if self._head is None:
            return math.nan
        try:
            train, train_labels = self._features(client, "train")
            test, test_labels = self._features(client, "test")
        except _NoFeatures as error:
            self._head = None
            rank_zero_warn(f"the accuracy of nearest class means is not measured: {error}.")
            return math.nan
        if len(train) == 0:
            return math.nan
        return nearest_mean_accuracy(train, train_labels, test, test_labels)

    def _features(self, client: int, split: str) -> tuple[Tensor, Tensor]:
        """Return what the head gets, (examples, features), and the labels, (examples,)."""
        assert self._head is not None
        seen: list[Tensor] = []
        labels: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].flatten(1))
        )
        try:
            for batch in self._loop.evaluator.batches(client, split):  # type: ignore[arg-type]
                x, y = _classified(batch)
                with self._loop.trainer.precision_plugin.test_step_context():
                    try:
                        self._loop.module(x)
                    except Exception as error:
                        name = type(self._loop.module).__name__
                        raise _NoFeatures(f"{name}.forward(inputs) fails: {error}") from error
                labels.append(y)
        finally:
            handle.remove()
        if not seen:
            return torch.empty(0, 0), torch.empty(0, dtype=torch.long)
        return torch.cat(seen).float(), torch.cat(labels)


def nearest_mean_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> float:
    """Return the share of test points whose nearest class mean is that of their own class.

    Args:
        train: Features to take means of, shape (n, d).
        train_labels: Their classes, shape (n,).
        test: Features to classify, shape (m, d).
        test_labels: Their classes, shape (m,).

    Example:
        >>> train = torch.tensor([[0.0], [2.0], [10.0]])
        >>> nearest_mean_accuracy(train, torch.tensor([0, 0, 1]),
        ...                       torch.tensor([[1.5], [9.0], [4.0]]), torch.tensor([0, 1, 1]))
        0.6666666666666666
    """
    classes: Tensor = train_labels.unique()  # type: ignore[no-untyped-call]
    means = torch.stack([train[train_labels == label].mean(dim=0) for label in classes])
    nearest = classes[torch.cdist(test, means).argmin(dim=1)]
    return int((nearest == test_labels).sum()) / len(test_labels)


def head_module(module: pl.LightningModule, parts: Parts) -> nn.Module | None:
    """Return the submodule that is the head, or ``None`` if the head is no single submodule."""
    head = set(parts.head)
    for path, child in module.named_modules():
        if path and {f"{path}.{key}" for key in child.state_dict()} == head:
            return cast(nn.Module, child)
    return None


class _NoFeatures(Exception):
    """Features of examples with one class each cannot be had from these batches."""


def _classified(batch: Any) -> tuple[Any, Tensor]:
    """Return inputs and classes of a batch."""
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise _NoFeatures("batches are not pairs of inputs and labels")
    x, y = batch
    if not isinstance(y, Tensor) or y.ndim != 1 or y.is_floating_point():
        raise _NoFeatures("labels are not one class an example")
    return x, y


def _short_name(name: str) -> str:
    """Return ``acc`` for ``global/acc``, ``test_acc`` or ``test/accuracy``; other names alike."""
    short = re.sub(r"^(global|test|val)[/_]", "", name)
    return "acc" if short.lower() in ("acc", "accuracy") else short
