"""Lightning's evaluation loop with a batch that is a client."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import CombinedLoader
from pytorch_lightning.utilities.exceptions import SIGTERMException

from fedlightning.core.metrics import LogFlags
from fedlightning.core.module_snapshot import Changes, ModuleSnapshot, TensorBindings
from fedlightning.core.state import State, copy_into, live_state
from fedlightning.datamodules import ClientTask
from fedlightning.engine._lightning.round_loop import Phase, RoundLoop, _log_as
from fedlightning.engine.resident import LIGHTNING_ATTRIBUTES
from fedlightning.engine.workers.collectives import Workers

__all__ = ["ClientEvaluationLoop", "PersonalizationLoop"]


class ClientEvaluationLoop(_EvaluationLoop):
    """Lightning's evaluation loop with a batch that is a client.

    Batches that are not :class:`ClientTask`, from a loader of the user, are evaluated by Lightning.

    Args:
        evaluate: Returns a client's metrics by name.
        summarise: Turns all clients' metrics into those that are logged.
    """

    def __init__(
        self,
        *args: Any,
        evaluate: Callable[[ClientTask], Mapping[str, float]],
        summarise: Callable[
            [Mapping[ClientTask, Mapping[str, float]]], Mapping[str, tuple[float, LogFlags]]
        ],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._evaluate = evaluate
        self._summarise = summarise
        self._scores: dict[ClientTask, Mapping[str, float]] = {}
        self._failure: Exception | None = None
        self._own_state: Changes | None = None
        self._state: State = {}

    def run(self) -> Any:
        """Evaluate; within ``fit``, the module is afterwards as it was.

        What the module remembers of its validations (lists, metric objects, a best value) lasts
        from one of them to the next, and nothing else sees it.
        """
        if self.trainer.state.fn is not TrainerFn.FITTING:
            return super().run()
        module = self.trainer.lightning_module
        bindings, snapshot = TensorBindings(module), ModuleSnapshot(module, LIGHTNING_ATTRIBUTES)
        self._state = {key: value.clone() for key, value in live_state(module).items()}
        if self._own_state is not None:
            self._own_state.apply()
        try:
            return super().run()
        finally:
            if not self.trainer.sanity_checking:
                self._own_state = snapshot.changes()
            if bindings.changed():
                bindings.restore()
            snapshot.restore()
            self._restore_state()

    def _restore_state(self) -> None:
        """Undo what the evaluation has changed in parameters and buffers."""
        present = live_state(self.trainer.lightning_module)
        copy_into(present, {key: value for key, value in self._state.items() if key in present})

    @property
    def _workers(self) -> Workers:
        return Workers.of(self.trainer)

    def reset(self) -> None:
        """Discard the scores of the previous evaluation."""
        super().reset()
        self._scores, self._failure = {}, None

    def _evaluation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any
    ) -> None:
        if not isinstance(batch, ClientTask):
            super()._evaluation_step(batch, batch_idx, dataloader_idx, dataloader_iter)
            return
        trainer = self.trainer
        stage = "test" if trainer.testing else "validation"
        self.batch_progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        self._results.batch_size = batch.num_examples
        call._call_callback_hooks(trainer, f"on_{stage}_batch_start", batch, batch_idx)
        self.batch_progress.increment_started()
        scores: Mapping[str, float] = {}
        self._workers.check()
        if self._workers.owns(batch_idx) and self._failure is None:
            try:
                scores = self._scores[batch] = self._evaluate(batch)
            except Exception as error:
                self._failure = error
                if self._workers.size == 1:
                    raise
        self.batch_progress.increment_processed()
        call._call_callback_hooks(trainer, f"on_{stage}_batch_end", scores, batch, batch_idx)
        trainer._logger_connector.on_batch_end()
        self.batch_progress.increment_completed()
        if not trainer.sanity_checking:
            self._has_run = True
        alone = self._workers.size == 1  # several workers agree at the round's end
        if alone and not self.batch_progress.is_last_batch and trainer.received_sigterm:
            raise SIGTERMException

    def _on_evaluation_epoch_end(self) -> None:
        self._workers.agree(self._failure)
        fx = "test_step" if self.trainer.testing else "validation_step"
        for name, (value, flags) in self._summarise(self._scores).items():
            _log_as(self.trainer.lightning_module, fx, name, value, flags)
        super()._on_evaluation_epoch_end()

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        fit_loop = self.trainer.fit_loop
        if isinstance(fit_loop, RoundLoop) and fit_loop.phase is Phase.AGGREGATED:
            fit_loop.phase = (
                Phase.VALIDATED
            )  # a checkpoint made by the hooks below holds the metrics
        self._restore_state()  # before callbacks save the model
        super()._on_evaluation_end(*args, **kwargs)


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
