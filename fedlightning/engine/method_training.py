"""Turns with an algorithm's local methods in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedlightning.algorithms.context import ClientContext
from fedlightning.core.seeding import Key
from fedlightning.core.state import State, copy_into
from fedlightning.datamodules.examples import has_classes
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.local_training import LocalResult, LocalTraining
from fedlightning.engine.resident import ResidentModule
from fedlightning.engine.steps import DirectStep, Step, needs_lightning_step, through_transfer
from fedlightning.errors import ConfigError
from fedlightning.federation.update_checks import BadUpdate, check_tensors

if TYPE_CHECKING:
    from fedlightning.engine.loop import FederatedLoop

__all__ = ["MethodFit"]


class MethodFit:
    """Local epochs in which an algorithm's local methods take part; else as :class:`LocalTraining`.

    Args:
        loop: The loop whose clients these are.
        resident: The module in which they train.
        log: Takes what the module logs.

    Raises:
        ConfigError: If a method says how to train on a batch, and so does something else.
    """

    def __init__(self, loop: FederatedLoop, resident: ResidentModule, log: LocalLog) -> None:
        algorithm = loop.federation.algorithm
        self._loop = loop
        self._resident = resident
        self._log = log
        self._methods = sorted(algorithm.local, key=lambda method: not method.first)
        self._adjusting = [method for method in self._methods if method.adjusts]
        self._turn: ClientContext | None = None
        self._adjust_apart: Callable[[], None] = lambda: None
        self._short: DirectStep | None = None
        step = self._own_step() or loop.make_step(self._adjust if self._adjusting else None)
        self._fit = LocalTraining(loop.trainer, loop.module, loop.data, step, log)
        self._apart: LocalTraining | None = None
        self._after_step: Callable[[int], None] | None = None

    def start(self, client: int, kept: Mapping[str, Tensor]) -> ClientContext:
        """Begin a client's turn; the module holds what the client starts from."""
        loop, resident = self._loop, self._resident
        if self._short is not None:
            self._refuse_accumulation()  # which a callback may have begun since the last round
        self._turn = ClientContext(
            client=client,
            round=loop.round,
            local_epochs=loop.federation.local_epochs,
            module=loop.module,
            received=resident.received,
            roles=loop.roles,
            parts=lambda: loop.parts,
            before=kept,
            servers=loop.server.sent_along,
            live=resident.view(),
            optimizer=loop.trainer.optimizers[0],
            step=self._short,
            muted=self._log.muted,
            apart=self._train_apart,
            counts=self._class_counts,
        )
        return self._turn

    def run(
        self, client: int, key: Key, epochs: int, after_step: Callable[[int], None] | None = None
    ) -> LocalResult:
        """Train on a client's data; see :meth:`LocalTraining.run`."""
        turn, self._after_step = self._turn, after_step
        assert turn is not None
        for method in self._methods:
            method.begin(turn)
            epochs = method.epochs(epochs)
        result = self._fit.run(client, key, epochs, after_step, self._begin_epoch)
        self._settle(result.steps)
        for method in self._methods:
            method.end(turn)
        if (name := turn.first_non_finite()) is not None:
            raise BadUpdate(
                "non_finite",
                f"{name}, which it keeps or sends along, is non-finite after {result.steps} steps; "
                "lower the learning rate or set trainer.gradient_clip_val.",
            )
        return result

    def _settle(self, steps: int) -> None:
        """Have in the module's own tensors what the client may have put in their places."""
        left = self._resident.actual_state()
        if left is not self._resident.view():
            check_tensors(left, self._resident.view(), steps)
            self._resident.settle()

    def _begin_epoch(self, epoch: int) -> None:
        for method in self._methods:
            method.begin_epoch(self._now, epoch)

    def _adjust(self) -> None:
        for method in self._adjusting:
            method.adjust(self._now)

    @property
    def _now(self) -> ClientContext:
        assert self._turn is not None
        return self._turn

    def _own_step(self) -> Step | None:
        """Return the step of the method that says how to train on a batch, if there is one."""
        stepping = next((method for method in self._methods if method.steps_itself), None)
        if stepping is None:
            return None
        loop = self._loop
        if (reason := needs_lightning_step(loop.trainer, loop.module)) is not None:
            self._refuse(reason)
        self._refuse_accumulation()
        self._short = DirectStep(
            loop.trainer, loop.module, self._adjust if self._adjusting else None
        )

        def step(batch: object, batch_idx: int, due: bool) -> Tensor | None:
            assert stepping is not None
            return stepping.train_on(self._now, batch, batch_idx)

        return through_transfer(loop.trainer, loop.module, step)

    def _refuse_accumulation(self) -> None:
        if (batches := self._loop.trainer.accumulate_grad_batches) != 1:
            self._refuse(f"trainer.accumulate_grad_batches={batches}")

    def _refuse(self, reason: str) -> None:
        raise ConfigError(
            f"{self._loop.federation.algorithm.name} says how to train on a batch, and so does "
            f"{reason}; do without the latter."
        )

    def _train_apart(
        self,
        turn: ClientContext,
        start: Mapping[str, Tensor],
        adjust: Callable[[], None],
        epochs: int,
    ) -> State:
        loop, resident = self._loop, self._resident
        if self._apart is None:
            step = loop.make_step(lambda: self._adjust_apart())
            self._apart = LocalTraining(loop.trainer, loop.module, loop.data, step, self._log)
        self._adjust_apart = adjust
        begun = {key: turn.live[key].clone() for key in loop.roles.kept}
        copy_into(turn.live, start)
        key = Key(loop.seed, "apart", round=turn.round, client=turn.client)
        with self._log.muted():
            result = self._apart.run(turn.client, key, epochs, self._after_step)
        check_tensors(resident.actual_state(), resident.view(), result.steps)
        resident.settle()
        trained = turn.trained_state()
        self._log.discard()
        resident.reset_client()
        resident.load_client(begun)
        loop.freeze()
        return trained

    def _class_counts(self, client: int, num_classes: int) -> Tensor:
        labels = self._loop.data.labels(client)
        if not has_classes(labels):
            raise ConfigError(
                f"{self._loop.federation.algorithm.name} needs one class a sample, which "
                f"{type(self._loop.data).__name__} does not have."
            )
        return torch.bincount(torch.from_numpy(labels), minlength=num_classes).double()
