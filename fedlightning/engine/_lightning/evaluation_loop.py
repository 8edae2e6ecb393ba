"""Lightning's evaluation loop with a batch that is a client."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any, Protocol, cast

from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import CombinedLoader
from pytorch_lightning.utilities.exceptions import SIGTERMException

from fedlightning.core.metrics import LogFlags
from fedlightning.core.module_snapshot import Changes, WholeModule
from fedlightning.datamodules import ClientTask, ViewLoader
from fedlightning.engine._lightning.round_loop import Phase, RoundLoop, _log_as, any_callback_has
from fedlightning.engine.resident import LIGHTNING_ATTRIBUTES
from fedlightning.engine.workers.collectives import Workers

__all__ = ["ClientEvaluationLoop", "PersonalizationLoop"]


class Evaluates(Protocol):
    """Evaluates the module on clients."""

    def start(self, tasks: Sequence[ClientTask]) -> None:
        """Begin an evaluation of some clients and splits."""

    def of_client(self, task: ClientTask) -> Mapping[str, float]:
        """Return a client's metrics by name."""

    def summarise(
        self, scores: Mapping[ClientTask, Mapping[str, float]]
    ) -> Mapping[str, tuple[float, LogFlags]]:
        """Turn all clients' metrics into those that are logged."""

    def finish(self) -> None:
        """End the evaluation, whether it went well or not."""


class ClientEvaluationLoop(_EvaluationLoop):
    """Lightning's evaluation loop with a batch that is a client.

    To callbacks the clients of all views are batches of one epoch. The module lives through epochs
    of its own, whose hooks the evaluator calls. Batches that are not :class:`ClientTask`, from a
    loader of the user, are evaluated by Lightning.

    Args:
        evaluator: Evaluates the module on clients.
    """

    def __init__(self, *args: Any, evaluator: Evaluates, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._evaluator = evaluator
        self._scores: dict[ClientTask, Mapping[str, float]] = {}
        self._failure: Exception | None = None
        self._tasks: list[ClientTask] | None = None
        self._whole: WholeModule | None = None
        self._memory: Changes | None = None
        self._observed = True  # by callbacks, client by client

    def run(self) -> Any:
        """Evaluate; within ``fit``, the module is left unchanged.

        What it remembers of its validations lasts from one of them to the next, and nothing else
        sees it.
        """
        rounds, fitting = self.trainer.fit_loop, self.trainer.state.fn is TrainerFn.FITTING
        outside = isinstance(rounds, RoundLoop) and not fitting
        try:
            with cast(RoundLoop, rounds).evaluating() if outside else nullcontext():
                return super().run()
        finally:
            if self._tasks is not None:
                self._tasks = None
                self._evaluator.finish()
            if self.trainer.sanity_checking:  # it would decide about the order of columns
                self._results.clear()
            if self._whole is not None:
                if not self.trainer.sanity_checking:
                    self._memory = self._whole.changes()
                self._whole.restore()
                self._whole = None

    def on_run_start(self) -> None:
        """Call the hooks, after the module's state is noted where Lightning evaluates it."""
        if self._tasks is None and self.trainer.state.fn is TrainerFn.FITTING:
            self._whole = WholeModule(self.trainer.lightning_module, LIGHTNING_ATTRIBUTES)
            if self._memory is not None:
                self._memory.apply()
        super().on_run_start()

    @property
    def _workers(self) -> Workers:
        return Workers.of(self.trainer)

    def reset(self) -> None:
        """Discard the scores of the previous evaluation; see which clients come."""
        super().reset()
        self._scores, self._failure, self._tasks = {}, None, None
        loaders = self._combined_loader.flattened if self._combined_loader is not None else []
        if len(loaders) == 1 and isinstance(loaders[0], ViewLoader):
            self._tasks = list(islice(loaders[0], int(self.max_batches[0])))

    def _on_evaluation_model_eval(self) -> None:
        if self._tasks is None:
            super()._on_evaluation_model_eval()
            return
        module = self.trainer.lightning_module
        self._module_mode.capture(module)
        module.eval()

    def _on_evaluation_model_train(self) -> None:
        if self._tasks is None:
            super()._on_evaluation_model_train()
            return
        self._module_mode.restore(self.trainer.lightning_module)

    def _on_evaluation_start(self, *args: Any, **kwargs: Any) -> None:
        if self._tasks is None:
            super()._on_evaluation_start(*args, **kwargs)
            return
        self._tell("start")
        call._call_strategy_hook(self.trainer, self._hook("start"))

    def _on_evaluation_epoch_start(self, *args: Any, **kwargs: Any) -> None:
        if self._tasks is None:
            super()._on_evaluation_epoch_start(*args, **kwargs)
            return
        self._tell("epoch_start")
        hooks = self._hook("batch_start"), self._hook("batch_end")
        self._observed = any_callback_has(self.trainer, hooks)
        self._attempt(lambda: self._evaluator.start(self._tasks or []))

    def _hook(self, moment: str) -> str:
        return f"on_{'test' if self.trainer.testing else 'validation'}_{moment}"

    def _tell(self, moment: str, *args: Any) -> None:
        """Call the callbacks' hook."""
        call._call_callback_hooks(self.trainer, self._hook(moment), *args)

    def _attempt(self, evaluate: Callable[[], None]) -> None:
        """Evaluate; with several workers, an error is raised when all of them know of it."""
        try:
            evaluate()
        except Exception as error:
            self._failure = error
            if self._workers.size == 1:
                raise

    def _evaluation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any
    ) -> None:
        if not isinstance(batch, ClientTask):
            super()._evaluation_step(batch, batch_idx, dataloader_idx, dataloader_iter)
            return
        trainer, workers = self.trainer, self._workers
        self.batch_progress.increment_ready()
        if self._observed:
            trainer._logger_connector.on_batch_start(batch)
            self._results.batch_size = batch.num_examples
            self._tell("batch_start", batch, batch_idx)
        self.batch_progress.increment_started()
        workers.check()
        if workers.owns(batch_idx) and self._failure is None:
            self._attempt(partial(self._measure, batch))
        self.batch_progress.increment_processed()
        if self._observed:
            self._tell("batch_end", self._scores.get(batch, {}), batch, batch_idx)
            trainer._logger_connector.on_batch_end()
        self.batch_progress.increment_completed()
        if not self._has_run and not trainer.sanity_checking:
            self._has_run = True
        alone = workers.size == 1  # several workers agree at the round's end
        if alone and not self.batch_progress.is_last_batch and trainer.received_sigterm:
            raise SIGTERMException

    def _measure(self, task: ClientTask) -> None:
        self._scores[task] = self._evaluator.of_client(task)

    def _on_evaluation_epoch_end(self) -> None:
        if self._tasks is None:
            super()._on_evaluation_epoch_end()
            return
        self._workers.agree(self._failure)
        fx = "test_step" if self.trainer.testing else "validation_step"
        for name, (value, flags) in self._evaluator.summarise(self._scores).items():
            _log_as(self.trainer.lightning_module, fx, name, value, flags)
        self._tell("epoch_end")
        self.trainer._logger_connector.on_epoch_end()

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        fit_loop = self.trainer.fit_loop
        if isinstance(fit_loop, RoundLoop) and fit_loop.phase is Phase.AGGREGATED:
            fit_loop.phase = (
                Phase.VALIDATED
            )  # a checkpoint made by the hooks below holds the metrics
        if self._tasks is None:
            if self._whole is not None:
                self._whole.restore_values()  # before callbacks save the model
            super()._on_evaluation_end(*args, **kwargs)
            return
        self._tell("end")
        call._call_strategy_hook(self.trainer, self._hook("end"))
        self.trainer._logger_connector.reset_results()


class PersonalizationLoop(ClientEvaluationLoop):
    """A test without evaluation: callbacks personalise at its end, as in any test."""

    @property
    def skip(self) -> bool:
        """Always false: clients without test data are personalised, too."""
        return False

    def setup_data(self) -> None:
        """Set up an empty loader."""
        self._combined_loader = CombinedLoader([[]], "sequential")
        self._max_batches = [0]
        self._seen_batches_per_dataloader = defaultdict(int)

    def reset(self) -> None:
        """See that no client comes."""
        super().reset()
        self._tasks = []
