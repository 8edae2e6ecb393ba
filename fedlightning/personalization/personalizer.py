"""Fine-tuning the global model to one client after another, and what that gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from fedlightning.core.module_snapshot import ModuleSnapshot
from fedlightning.core.optimizers import FreshOptimizers
from fedlightning.core.parts import head_module
from fedlightning.core.predictors import Predictor, predicting_with
from fedlightning.core.seeding import Key
from fedlightning.core.state import State, copy_into, live_state
from fedlightning.core.views import EvaluationView
from fedlightning.datamodules import ClientTask, Split, ViewLoader
from fedlightning.engine._lightning.stages import at_stage
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.local_settings import TrainerSettings
from fedlightning.engine.local_training import LocalEpochs
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.per_example import doubt
from fedlightning.engine.resident import LIGHTNING_ATTRIBUTES
from fedlightning.engine.steps import make_step
from fedlightning.errors import ConfigError
from fedlightning.models.base import freeze_all_but
from fedlightning.personalization.head_only.eligibility import obstacle
from fedlightning.personalization.head_only.features import (
    FeatureBatch,
    NoFeatures,
    nearest_mean_accuracy,
    read_features,
)
from fedlightning.personalization.head_only.finetuning import HeadOnlyFineTuner, nearest_mean_of
from fedlightning.personalization.hooks import TuningHooks
from fedlightning.personalization.models.writer import PREDICTOR
from fedlightning.personalization.results import PersonalResult
from fedlightning.personalization.scoring import Scores, measure, preserve_training_state

__all__ = ["MakeOptimizer", "PersonalResult", "Personalizer", "nearest_mean_accuracy"]

Tuned = tuple[list[Scores], float]  # scores in order of time, nearest mean
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class Personalizer:
    """Fine-tunes the resident module for one client at a time, from the global model.

    Inside ``with personalizer.at_work():`` the module may be anything; afterwards it is the global
    model again, with the modes, gradient flags and optimizers that it had.

    Args:
        loop: The loop whose module, data and kept personal states are used.
        part: What is fine-tuned, an expression over the names of parts.
        epochs: Passes over the client's training data.
        make_optimizer: Builds the optimizer of the part's parameters.
        nearest_mean: Whether to measure the accuracy without the head, too.
        features_once: Whether the head alone is trained, on features that the body computes once
            (see :mod:`fedlightning.personalization.head_only.eligibility`); ``None`` where that is
            known to be exact.
        curve: Whether to measure after every epoch, too.

    Attributes:
        fallback_reason: Why the body runs at every step; ``None`` if the head is trained alone.
    """

    fallback_reason: str | None

    def __init__(
        self,
        loop: FederatedLoop,
        part: str,
        epochs: int,
        make_optimizer: MakeOptimizer,
        nearest_mean: bool = True,
        features_once: bool | None = None,
        curve: bool = False,
    ) -> None:
        self._loop = loop
        self._part = part
        self._parts = loop.parts_for(part)
        self._keys = self._parts.keys(part)
        self._epochs = epochs
        self._make_optimizer = make_optimizer
        self._nearest = nearest_mean
        self._features_once = features_once
        self._curve = curve
        self._head = self._find_head()
        self._kept: tuple[int, State] = (-1, {})
        self._predictor: Predictor | None = None
        self._views = [
            (view, view.clients if isinstance(view.clients, range) else frozenset(view.clients))
            for view in loop.data.evaluation_views()
        ]
        self._hooks = TuningHooks(loop, self._keys, epochs)
        self._layers: tuple[list[nn.Module], list[nn.Module]] | None = None

    def check(self) -> None:
        """Refuse what could not be fine-tuned.

        Raises:
            ConfigError: If the module has several optimizers.
        """
        count = len(self._loop.trainer.strategy.optimizers)
        if count > 1:
            name = type(self._loop.module).__name__
            raise ConfigError(f"personalization takes one optimizer, {name} has {count}.")
        self._hooks.check()

    def _find_head(self) -> nn.Module | None:
        loop = self._loop
        if self._part == "head":
            return head_module(loop.module, self._parts)
        if not self._nearest:
            return None
        try:
            return head_module(loop.module, loop.parts)
        except ConfigError as error:
            rank_zero_warn(f"the accuracy of nearest class means is not measured: {error}")
            return None

    @contextmanager
    def at_work(self) -> Iterator[Personalizer]:
        """Prepare the module for fine-tuning; restore it on exit."""
        loop, module, strategy = self._loop, self._loop.module, self._loop.trainer.strategy
        modes = {child: child.training for child in module.modules()}
        flags = {p: p.requires_grad for p in module.parameters()}
        optimizers, schedulers = strategy.optimizers, strategy.lr_scheduler_configs
        self.check()
        with torch.inference_mode(False):  # otherwise the new weights would be inference tensors
            loop.set_memory_format()
        self._stashed = optimizers, schedulers
        self._global: State = {key: value.clone() for key, value in live_state(module).items()}
        self._snapshot = ModuleSnapshot(module, LIGHTNING_ATTRIBUTES)
        with torch.inference_mode(False), torch.enable_grad():
            try:
                self._make_trainable()
                strategy.optimizers = [self._make_optimizer(self._trainable())]
                strategy.lr_scheduler_configs = []
                self._fresh = FreshOptimizers(strategy.optimizers, [])
                self._alone = self._head_alone()
                loop.borrower = self
                settings, step = TrainerSettings(loop.trainer), make_step(loop.trainer, module)
                self._fit = LocalEpochs(settings, module, loop.data, step, LocalLog(module))
                yield self
            finally:
                loop.borrower = None
                self._restore()
                strategy.optimizers, strategy.lr_scheduler_configs = optimizers, schedulers
                for parameter, flag in flags.items():
                    parameter.requires_grad_(flag)
                for child, mode in modes.items():
                    child.training = mode

    def client(self, client: int) -> PersonalResult:
        """Evaluate, fine-tune, evaluate; the fine-tuned model is in the module until the next call.

        A client without data to measure on, beside validation data, is not fine-tuned.
        """
        loop, tasks = self._loop, self._tasks(client)
        sizes = {task.split: task.num_examples for task in tasks}
        num_train = loop.data.num_examples(client)
        names = loop.data.client_names
        name = names[client] if names is not None else ""
        if not sizes.keys() - {"val"}:
            return PersonalResult(client, num_train, sizes, name=name)
        self._restore()
        copy_into(live_state(loop.module), self.kept(client))
        self._predictor = self._predictor_of(client)
        scores, nearest = self._tune_alone(client, tasks) or self._tune(client, tasks)
        if self._curve:
            scores = _one_per_epoch(scores, self._epochs)
        return PersonalResult(client, num_train, sizes, tuple(scores), nearest, self._curve, name)

    def _tasks(self, client: int) -> list[ClientTask]:
        """Return the splits on which the views measure a client; its test data if none does."""
        views = [replace(view, clients=(client,)) for view, who in self._views if client in who]
        return list(
            ViewLoader(views or [EvaluationView("", (client,))], self._loop.data.num_examples)
        )

    def kept(self, client: int) -> State:
        """Return the values in which a client's own model differs from the global one at first.

        The module must hold the global model.
        """
        if self._kept[0] != client:  # it may lie in a file, and is asked for twice
            own = self._loop.personal_model(client)
            if self._hooks.fits:
                copy_into(live_state(self._loop.module), own)
                own = {**own, **self._hooks.fit(client, self._global)}
            self._kept = client, own
        return self._kept[1]

    def own_state(self, result: PersonalResult) -> State:
        """Return what the client that was fine-tuned last does not share with the global model.

        That is the part that is fine-tuned, and what the client has kept. A client that was not
        measured is fine-tuned now.
        """
        module, client = self._loop.module, result.client
        if not result.scores:
            self._restore()
            copy_into(live_state(module), self.kept(client))
            self._predictor = self._predictor_of(client)
            self._hooks.prepare(client, self._global)
            self._set_modes()
            if result.num_train:
                self._run_epochs(client)
            self._finish(client)
        state = live_state(module)
        own = {*self._keys, *self.kept(client)}
        rule = self._predictor.state_dict() if self._predictor is not None else {}
        return {
            **{key: value for key, value in state.items() if key in own},
            **{PREDICTOR + key: value for key, value in rule.items()},
        }

    def _tune(self, client: int, tasks: Sequence[ClientTask]) -> Tuned:
        """Measure, fine-tune as in a round, measure."""
        loop = self._loop
        loop.module.eval()
        scores = [self._measure(tasks)]
        nearest = self._nearest_mean(client)
        self._hooks.prepare(client, self._global)
        self._set_modes()

        def on_epoch(epochs: int) -> None:
            if self._curve and epochs:
                with preserve_training_state(loop.module):
                    self._finish(client)
                    scores.append(self._measure(tasks))

        if loop.data.num_examples(client):
            self._run_epochs(client, on_epoch)
        loop.module.eval()
        self._finish(client)
        return [*scores, self._measure(tasks)], nearest

    def _measure(self, tasks: Sequence[ClientTask]) -> Scores:
        with predicting_with(self._predictor, self._loop.module):
            return measure(tasks, self._loop.evaluator.evaluate)

    def _finish(self, client: int) -> None:
        """Let hooks look at the fine-tuned module; what it predicts with is theirs."""
        if self._hooks.take_part(client):
            self._predictor = self._predictor_of(client, self._hooks.finish(client, self._global))

    def _predictor_of(self, client: int, found: State | None = None) -> Predictor | None:
        """Return what a client predicts with, where that is more than a state of the module.

        Args:
            client: Client id.
            found: What hooks have returned after fine-tuning.
        """
        loop = self._loop
        kept = {**(loop.client_store.get(client) or {}), **(found or {})}
        for hook in loop.federation.algorithm.hooks:
            if hook.adapts:
                with preserve_training_state(loop.module), torch.no_grad():
                    kept |= hook.adapt(loop.evaluator.batches(client, "train"), loop.module)
            if (predictor := hook.predictor(kept, loop.module)) is not None:
                return predictor
        return None

    def _run_epochs(self, client: int, on_epoch: Callable[[int], None] | None = None) -> None:
        key = Key(self._loop.seed, "personalize", client=client)
        with at_stage(self._loop.trainer, "train"):
            self._fit.run(client, key, self._epochs, on_epoch=on_epoch)

    @contextmanager
    def showing_global(self) -> Iterator[None]:
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
            parameter.requires_grad_(self._loop.model.trainable.get(key, parameter.requires_grad))
        if self._part != "full":
            freeze_all_but(module, self._parts, self._keys)

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self._loop.module.parameters() if p.requires_grad]

    def _set_modes(self) -> None:
        """Put in train mode what is fine-tuned; nothing else may move, running statistics included.

        A body of which nothing is fine-tuned stays in eval mode. So does any other layer whose
        buffers are not fine-tuned.
        """
        module, parts = self._loop.module, self._parts
        if self._part == "full":
            module.train()
            self._keep_eval()
            return
        module.train(not frozenset(self._keys).isdisjoint(parts.body))
        if self._layers is None:
            self._layers = _layers_by_part(module, frozenset(self._keys))
        for child in self._layers[0]:
            child.train()
        for child in self._layers[1]:
            child.training = False
        self._keep_eval()

    def _keep_eval(self) -> None:
        """Leave in eval mode what the user has put into it, such as a frozen encoder."""
        for child, training in self._loop.modes.items():
            if not training:
                child.training = False

    def _restore(self) -> None:
        if hasattr(self, "_snapshot"):
            self._snapshot.restore()
        copy_into(live_state(self._loop.module), self._global)
        if hasattr(self, "_fresh"):
            self._fresh.restore()

    def _nearest_mean(self, client: int) -> float:
        if self._head is None or not self._nearest:
            return math.nan
        try:
            train, test = self._read(client, "train"), self._read(client, "test")
        except NoFeatures as error:
            self._head = None
            rank_zero_warn(f"the accuracy of nearest class means is not measured: {error}.")
            return math.nan
        return nearest_mean_of(train, test)

    def _read(self, client: int, split: Split) -> list[FeatureBatch]:
        assert self._head is not None
        loop = self._loop
        batches = loop.evaluator.batches(client, split)
        return read_features(loop.module, self._head, batches, loop.trainer.precision_plugin)

    # -- the head alone ----------------------------------------------------------------------

    def _head_alone(self) -> HeadOnlyFineTuner | None:
        """Return what does without the body at every step, where that is the same."""
        reason = self._fallback_reason()
        if reason is not None:
            self._fall_back(reason)
            return None
        self.fallback_reason = None
        assert isinstance(self._head, nn.Linear)
        return HeadOnlyFineTuner(self._loop, self._head, self._epochs, self._nearest, self._curve)

    def _fallback_reason(self) -> str | None:
        loop = self._loop
        if self._part != "head":
            return f"part is {self._part!r}"
        if self._features_once is False:
            return "features_once is False"
        known = obstacle(loop.trainer, loop.module, self._head, loop.data)
        return known if known or self._features_once else doubt(loop.module)

    def _fall_back(self, reason: str) -> None:
        if self._features_once:
            raise ConfigError(
                f"features_once=True cannot be: {reason}. Leave it out: then the body runs at "
                "every step where it has to."
            )
        self.fallback_reason = reason
        self._alone = None

    def _tune_alone(self, client: int, tasks: Sequence[ClientTask]) -> Tuned | None:
        """Return ``None`` where it has to be done the long way."""
        if self._alone is None or self._predictor is not None or self._hooks.take_part(client):
            return None
        if not (self._features_once or self._alone.fits(client)):
            return None
        try:
            return self._alone.run(client, tasks)
        except NoFeatures as error:
            self._fall_back(str(error))
            return None


def _one_per_epoch(scores: list[Scores], epochs: int) -> list[Scores]:
    """Return the scores after 0, 1, ... epochs, also of a client without examples to train on."""
    unchanged = [scores[0]] * (epochs + 1 - len(scores))
    return [*unchanged, *scores][: epochs + 1]


def _layers_by_part(
    module: nn.Module, part: frozenset[str]
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers that are all in a part, and those with buffers of their own outside it."""
    inside, outside = [], []
    for path, child in module.named_modules():
        start = f"{path}." if path else ""
        keys = {start + key for key in child.state_dict()}
        buffers = {start + name for name, _ in child.named_buffers(recurse=False)}
        if keys and keys <= part:
            inside.append(child)
        elif keys & buffers - part:
            outside.append(child)
    return inside, outside
