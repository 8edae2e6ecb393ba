"""Evaluation of a model on clients' data, client by client, and means over evaluation views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from fedlightning.core.batches import inputs_of
from fedlightning.core.main_metric import MainMetric
from fedlightning.core.metrics import LogFlags, Metrics
from fedlightning.core.module_snapshot import Changes, WholeModule
from fedlightning.core.overrides import overrides
from fedlightning.core.seeding import Key, default_seed, forked_generators
from fedlightning.core.statistics import over_clients
from fedlightning.core.views import CENTRAL, EvaluationView
from fedlightning.datamodules import Batch, ClientTask, FederatedDataModule, Split
from fedlightning.engine._lightning.stages import show_callback_metrics
from fedlightning.engine.evaluation_epoch import EvaluationEpoch, Measured, no_step
from fedlightning.engine.joint_evaluation import JointEvaluation, obstacle
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.resident import LIGHTNING_ATTRIBUTES
from fedlightning.engine.steps import ready_batches
from fedlightning.engine.workers.collectives import Workers
from fedlightning.errors import ConfigError

__all__ = ["ClientEvaluator", "evaluation_steps", "federated_data"]


class ClientEvaluator:
    """Runs a module's evaluation steps on clients and averages over each view.

    Args:
        trainer: The trainer whose module, data and precision are used.
        seed: Seed of what an evaluation step draws; ``None`` means the run's.

    Attributes:
        per_class: Whether accuracies are also measured class by class.
        accuracies: The main metric of every client of a view, by the view's name, at the last
            evaluation.
        main_metric: The metric that counts; what the module measures decides, unless it is given.
        last_round: The round of that evaluation; ``None`` before the first one.
    """

    def __init__(self, trainer: pl.Trainer, seed: int | None = None) -> None:
        self.per_class = False
        self.given_metric: tuple[str | None, str | None] = None, None
        self.accuracies: dict[str, list[float]] = {}
        self.main_metric = MainMetric()
        self.last_round: int | None = None
        self._trainer = trainer
        self._given_seed = seed
        self._flags: dict[str, LogFlags] = {}
        self._whole: WholeModule
        self._epochs: dict[Split, EvaluationEpoch] = {}
        self._joint: dict[Split, JointEvaluation] = {}
        self._pooled: dict[tuple[str, Split], dict[str, float]] = {}
        self._known: dict[ClientTask, Mapping[str, float]] = {}
        self._memory: dict[tuple[str, Split], Changes] = {}
        self._memory_of: pl.LightningModule | None = None
        self._appended: list[tuple[list[Any], list[Any]]] = []

    @property
    def flags(self) -> Mapping[str, LogFlags]:
        """Where what has been measured is logged, by name."""
        return self._flags

    # -- one client ----------------------------------------------------------------------------

    def evaluate(
        self, task: ClientTask, batches: Iterable[Batch] | None = None
    ) -> dict[str, float]:
        """Return what the module logs in a complete epoch on one client's data.

        The module is left unchanged.

        Args:
            task: Client and split.
            batches: Batches to use instead of the client's.
        """
        module, epoch = self._trainer.lightning_module, EvaluationEpoch(self._trainer, task.split)
        if batches is None and (found := self._directly(epoch, task)) is not None:
            return found
        before = WholeModule(module, LIGHTNING_ATTRIBUTES)
        try:
            return self._run(epoch, [task], batches).all
        finally:
            before.restore()

    def _directly(self, epoch: EvaluationEpoch, task: ClientTask) -> dict[str, float] | None:
        """Return the same where nothing but the network needs to run; ``None`` elsewhere."""
        trainer = self._trainer
        if epoch.hooked or self.per_class or obstacle(trainer, trainer.lightning_module):
            return None
        Workers.of(trainer).check()
        alone = JointEvaluation(trainer, task.split, [task], self._read_alone, least_rows=1)
        found = alone.of_client(task)
        if found is not None:
            self._flags.update(alone.flags)
        return found

    def _run(
        self,
        epoch: EvaluationEpoch,
        tasks: Sequence[ClientTask],
        batches: Iterable[Batch] | None = None,
        show: bool = False,
    ) -> Measured:
        """Run one epoch over clients, whose data may be given where there is one client."""
        log = LocalLog(self._trainer.lightning_module)
        parts = (
            (self._key(task), self._checked(task) if batches is None else batches) for task in tasks
        )
        shown = partial(show_callback_metrics, self._trainer) if show else None
        measured = epoch.run(parts, log, self.per_class, shown)
        logged = {*measured.all, *(name for part in measured.by_part for name in part)}
        self._flags.update({name: log.flags.get(name, LogFlags()) for name in logged})
        return measured

    def _key(self, task: ClientTask) -> Key:
        trainer = self._trainer
        # central data has the random stream after those of all clients
        client = task.client if task.client != CENTRAL else federated_data(trainer).num_clients
        return Key(self._seed, "evaluate", round=trainer.current_epoch, client=client)

    def _checked(self, task: ClientTask) -> Iterator[Batch]:
        """Return a client's batches, unless another worker is lost or the run is to stop."""
        Workers.of(self._trainer).check()
        return self.batches(task.client, task.split)

    def _read_alone(self, task: ClientTask) -> Iterator[Batch]:
        """Return a client's batches, read with its random stream where reading may draw."""
        data, device = federated_data(self._trainer), self._trainer.strategy.root_device
        batches = data.batches(task.client, task.split, device=device)
        return batches if data.fixed_examples else self._drawn(self._key(task), batches)

    def _drawn(self, key: Key, batches: Iterator[Batch]) -> Iterator[Batch]:
        paused: list[Any] = []
        while True:
            with forked_generators(key, self._trainer.strategy.root_device, paused):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    @property
    def _seed(self) -> int:
        return default_seed(self._given_seed)

    def batches(self, client: int, split: Split) -> Iterator[Batch]:
        """Return a client's data in evaluation batches, ready for the module."""
        trainer = self._trainer
        batches = federated_data(trainer).batches(
            client, split, device=trainer.strategy.root_device
        )
        return ready_batches(trainer, trainer.lightning_module, batches)

    # -- the global model ----------------------------------------------------------------------

    def start(self, tasks: Sequence[ClientTask]) -> None:
        """Begin an evaluation: let the module live through one epoch over all clients of a view.

        That gives what its hooks log at the end of an epoch; only a module with such hooks is
        evaluated so. Every worker does all of it, so that any state of the module sees all
        examples.

        Args:
            tasks: The clients and splits to come.
        """
        trainer = self._trainer
        module = trainer.lightning_module
        self._pooled, self._known, self._appended = {}, {}, []
        if self._memory_of is not module:
            self._memory, self._memory_of = {}, module
        self._whole = WholeModule(module, LIGHTNING_ATTRIBUTES)
        splits = dict.fromkeys(task.split for task in tasks)
        self._epochs = {split: EvaluationEpoch(trainer, split) for split in splits}
        for view in reversed(_validation_last(federated_data(trainer).evaluation_views())):
            clients = frozenset(view.clients)
            of_view = [t for t in tasks if t.split == view.split and t.client in clients]
            if of_view and self._epochs[view.split].pools:
                self._pooled[_place(view)] = self._all_at_once(view, of_view)
        self._joint = self._jointly(tasks)

    def _jointly(self, tasks: Sequence[ClientTask]) -> dict[Split, JointEvaluation]:
        """Return what evaluates this worker's clients together, for each split where that is so."""
        trainer = self._trainer
        if self.per_class or obstacle(trainer, trainer.lightning_module) is not None:
            return {}
        workers, found = Workers.of(trainer), dict[Split, JointEvaluation]()
        for split, epoch in self._epochs.items():
            if not epoch.hooked:
                mine = [t for at, t in enumerate(tasks) if t.split == split and workers.owns(at)]
                found[split] = JointEvaluation(trainer, split, mine, self._read_alone)
                self._flags.update(found[split].flags)
        return found

    def _all_at_once(self, view: EvaluationView, tasks: Sequence[ClientTask]) -> dict[str, float]:
        """Return what the epoch's hooks log; remember of each client what need not be run again."""
        trainer, epoch = self._trainer, self._epochs[view.split]
        lasting = not trainer.sanity_checking and self._lasts(view)
        place = _place(view)
        if lasting and place in self._memory:
            self._memory[place].apply()
        measured = self._run(epoch, tasks, show=not view.name)
        if lasting:
            self._memory[place] = self._whole.changes()
        self._whole.restore()
        if len(tasks) == 1:
            self._known[tasks[0]] = measured.by_batch
        elif not measured.has_metrics:
            self._known |= dict(zip(tasks, measured.by_part, strict=True))
        return measured.by_epoch

    def _lasts(self, view: EvaluationView) -> bool:
        """Whether what the module remembers of this evaluation lasts until the next one.

        So it does of validations, and of a test that was asked for; the test data that ``fit``
        looks at are always met for the first time.
        """
        return view.on_validation_data or bool(self._trainer.testing)

    def finish(self) -> None:
        """End an evaluation; a test leaves in the module what its epoch has left there."""
        if self._trainer.state.fn is TrainerFn.FITTING:
            return
        for collected, new in self._appended:
            collected.extend(new)
        split = "test" if self._trainer.testing else "val"
        if (left := self._memory.get(("", split))) is not None:
            left.apply()

    def of_client(self, task: ClientTask) -> Mapping[str, float]:
        """Return what the module logs around the batches of one client, in an epoch of its own."""
        if task in self._known:
            return self._known[task]
        joint = self._joint.get(task.split)
        if joint is not None and (found := joint.of_client(task)) is not None:
            return found
        try:
            return self._run(self._epochs[task.split], [task]).by_batch
        finally:
            if self._trainer.testing:
                self._appended += self._whole.growth()
            self._whole.restore()

    def summarise(self, scores: Mapping[ClientTask, Mapping[str, float]]) -> Metrics:
        """Return the metrics of every view: means over its clients, of all workers.

        Args:
            scores: What this worker has measured of single clients.
        """
        everyones: dict[tuple[Split, int], tuple[int, Mapping[str, float]]] = {}
        for part, flags in Workers.of(self._trainer).gather((dict(scores), self._flags)):
            for task, values in part.items():
                everyones[task.split, task.client] = task.num_examples, values
            self._flags |= flags
        self._choose_main_metric(everyones)
        metrics: dict[str, tuple[float, LogFlags]] = {}
        accuracies: dict[str, list[float]] = {}
        for view in _validation_last(federated_data(self._trainer).evaluation_views()):
            places = ((view.split, client) for client in view.clients)
            measured = [everyones[place] for place in places if place in everyones]
            metrics |= self._metrics_of(view, measured)
            for name, value in self._pooled.get(_place(view), {}).items():
                shown = self._flags[name]
                quiet = replace(shown, prog_bar=False)
                metrics[view.metric(name)] = value, quiet if view.name else shown
            if not view.on_validation_data:
                accuracies[view.name] = [
                    found
                    for _, values in measured
                    if (found := self.main_metric.value_in(values)) is not None
                ]
        if not self._trainer.sanity_checking:
            self.accuracies = accuracies
            self.last_round = self._trainer.current_epoch
        return metrics

    def _choose_main_metric(
        self, everyones: Mapping[tuple[Split, int], tuple[int, Mapping[str, float]]]
    ) -> None:
        tested = [scores for (split, _), (_, scores) in everyones.items() if split == "test"]
        names = [name for scores in tested[:1] for name in scores]
        pooled = [name for (_, s), found in self._pooled.items() if s == "test" for name in found]
        given, mode = self.given_metric
        if names or pooled:
            self.main_metric = MainMetric.chosen([*names, *pooled], given, mode)

    def _metrics_of(
        self, view: EvaluationView, measured: Sequence[tuple[int, Mapping[str, float]]]
    ) -> dict[str, tuple[float, LogFlags]]:
        """Return a view's metrics, given how many examples each client has and its scores."""
        by_name: dict[str, list[tuple[float, int]]] = {}
        for size, scores in measured:
            for name, value in scores.items():
                by_name.setdefault(name, []).append((value, size))
        metrics: dict[str, tuple[float, LogFlags]] = {}
        for name, entries in by_name.items():
            flags = self._flags[name]
            quiet = replace(flags, prog_bar=False)
            values, sizes = [value for value, _ in entries], [size for _, size in entries]
            for key, value in over_clients(name, values, sizes).items():
                shown = flags if key == name and not view.name else quiet
                if key == name or key not in by_name:  # a name of the module's own comes first
                    metrics[view.metric(key)] = value, shown
        return metrics


def _place(view: EvaluationView) -> tuple[str, Split]:
    return view.name, view.split


def _validation_last(views: Sequence[EvaluationView]) -> list[EvaluationView]:
    """Return the views with those of validation data last, whose metrics prevail."""
    return sorted(views, key=lambda view: view.on_validation_data)


def federated_data(trainer: pl.Trainer) -> FederatedDataModule:
    """Return a trainer's data module.

    Raises:
        ConfigError: The trainer has another kind of data.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, FederatedDataModule):
        got = type(data).__name__ if data is not None else "none"
        raise ConfigError(
            f"FederatedTrainer needs a FederatedDataModule as `datamodule`; got {got}. For arrays "
            "or Datasets see FederatedArrays and ClientDatasets in fedlightning.datamodules."
        )
    return data


def _predict_classes(module: pl.LightningModule, batch: Batch, batch_idx: int) -> Any:
    """Return class probabilities where the module returns logits, else its outputs."""
    outputs = module(inputs_of(batch))
    logits = isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.is_floating_point()
    return outputs.softmax(dim=-1) if logits else outputs


@contextmanager
def evaluation_steps(module: pl.LightningModule | None) -> Iterator[None]:
    """Add the evaluation steps that a module lacks, inside the ``with`` block.

    Lightning skips or refuses evaluation of a module without the step, but a classifier can be
    evaluated on the clients' test data without one.
    """
    stand_ins = {"validation_step": no_step, "test_step": no_step}
    if module is not None:
        stand_ins["predict_step"] = partial(_predict_classes, module)
    missing = [
        name
        for name in stand_ins
        if module is not None and not overrides(module, name, pl.LightningModule)
    ]
    for name in missing:
        vars(module)[name] = stand_ins[name]
    try:
        yield
    finally:
        for name in missing:
            del vars(module)[name]
