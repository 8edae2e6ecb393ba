"""Several clients trained at once: the local epochs of a group in one stacked network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby, islice

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from fedlightning.algorithms.context import ClientContext
from fedlightning.core.batches import Batch, Split
from fedlightning.core.overrides import overrides
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.core.state import State, copy_into, live_state
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.engine.grouped.network import (
    layers_of,
    mean_losses,
    stack_states,
    stacked_forward,
    unsupported,
)
from fedlightning.engine.grouped.optimizer import StackedParameters, unsupported_optimizer
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.local_training import LOCAL_HOOKS, batch_limit
from fedlightning.engine.steps import needs_lightning_step, transfers_batches
from fedlightning.errors import ConfigError, WorkerLost
from fedlightning.federation.client_update import LocalResult
from fedlightning.federation.jobs import Job
from fedlightning.models.base import FederatedModule

__all__ = ["GroupedTraining", "unsupported_reason"]

_Update = tuple[int, int]  # client and the number of its random streams


class GroupedTraining:
    """Local epochs of a group of clients at once; in use it is a :class:`LocalTraining`.

    The first of a group to be asked for is trained together with the others, whose results wait
    for their turns. Each client has the batches, the optimizer and the steps that it would have
    alone; a client with fewer batches leaves the group early, and batches of unlike length are
    computed apart. Results are those of training one by one, up to rounding. If one of a group
    fails, its clients are trained one by one, and so is a client that is tried again. A group
    starts when its first client does, so what a callback does to the model between two of them is
    not seen.

    Args:
        trainer: The trainer whose limits and optimizer are honoured.
        module: The resident module, on its device.
        data: The clients' data; the batches of a group's local epoch are in memory at once.
        log: Takes the clients' losses.
        size: The most clients of a group.
        start: Returns the state from which a job's client starts.

    Raises:
        ConfigError: If clients cannot be trained at once, with the reason.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        data: FederatedDataModule,
        log: LocalLog,
        size: int,
        start: Callable[[Job], State],
    ) -> None:
        if (reason := unsupported_reason(trainer, module)) is not None:
            raise ConfigError(
                f"federation.clients_per_kernel={size}: clients cannot be trained at once, because "
                f"{reason}; set it to 1."
            )
        assert isinstance(module, FederatedModule)
        self._trainer = trainer
        self._module = module
        self._data = data
        self._log = log
        self._size = size
        self._start = start
        self._groups: dict[_Update, list[Job]] = {}
        self._trained: dict[_Update, tuple[State, LocalResult]] = {}

    def plan(self, jobs: Sequence[Job]) -> None:
        """Divide a commit's jobs into groups, in their order; forget the last commit's.

        A client that trains twice starts its second update from what it has kept of the first: they
        are in different groups.

        Args:
            jobs: Those that this process trains.
        """
        self._trained.clear()
        self._groups.clear()
        group: list[Job] = []
        for job in jobs:
            if len(group) == self._size or any(job.client == other.client for other in group):
                group = []
            group.append(job)
            self._groups[job.client, job.stream] = group

    def epochs_of(self, client: int, steps: int) -> int:
        """Refuse: clients that train at once pass over their data together."""
        raise ConfigError("federation.local_steps needs federation.clients_per_kernel=1.")

    @property
    def optimizer(self) -> Optimizer:
        """The module's optimizer."""
        return self._trainer.optimizers[0]

    @property
    def gradient_step(self) -> None:
        """None: hooks are refused where clients train at once."""

    def no_logging(self) -> AbstractContextManager[None]:
        """Drop what is logged inside the ``with`` block."""
        return self._log.muted()

    def train_copy(self, *_: object) -> State:
        """Refuse: hooks do not take part where clients train at once."""
        raise ConfigError("federation.clients_per_kernel: set it to 1 for an algorithm with hooks.")

    def optimizer_memory(self) -> State:
        """Refuse."""
        raise ConfigError("federation.clients_per_kernel: set it to 1 for an algorithm with hooks.")

    def set_optimizer_memory(self, memory: Mapping[str, Tensor]) -> None:
        """Refuse."""
        raise ConfigError("federation.clients_per_kernel: set it to 1 for an algorithm with hooks.")

    def positions(self, batch_idx: int) -> Tensor:
        """Refuse."""
        raise ConfigError("federation.clients_per_kernel: set it to 1 for an algorithm with hooks.")

    def stored_batches(self, client: int, split: Split = "train") -> Iterator[Batch]:
        """Refuse."""
        raise ConfigError("federation.clients_per_kernel: set it to 1 for an algorithm with hooks.")

    def run(self, context: ClientContext, epochs: int) -> LocalResult:
        """Train the context's module: it takes the client's place in its group."""
        update, key, after_step = (context.client, context.round), context.key, context.after_step
        if update not in self._trained:
            group = self._groups[update]
            for job in group:  # from now on by itself: a client that is retried, say
                self._groups[job.client, job.stream] = [job]
            try:
                self._train(group, key, epochs, after_step)
            except Exception as error:
                if len(group) == 1 or isinstance(error, WorkerLost):
                    raise
                rank_zero_warn(
                    f"clients {', '.join(str(job.client) for job in group)} are trained one by one "
                    f"this time, to see whose fault it is: {type(error).__name__}: {error}"
                )
                self._train(self._groups[update], key, epochs, after_step)
        state, result = self._trained.pop(update)
        copy_into(live_state(self._module), state)
        return result

    def _train(
        self,
        group: Sequence[Job],
        key: Key,
        epochs: int,
        after_step: Callable[[int], None] | None,
    ) -> None:
        limit, counts = self._trainer.limit_train_batches, self._data.num_batches
        jobs = {job.client: job for job in group}
        steps = {client: epochs * batch_limit(limit, counts(client)) for client in jobs}
        # clients that finish first come last, so that those still training are a slice of the stack
        clients = sorted(
            steps, key=lambda client: (-steps[client], self._data.num_examples(client))
        )
        streams = [
            self._batches(client, key.at(client=client, round=jobs[client].stream), epochs)
            for client in clients
        ]
        layers = layers_of(self._module)
        stack = stack_states([self._start(jobs[c]) for c in clients], live_state(self._module))
        at_work = StackedParameters(self._trainer.optimizers[0], self._module, stack)
        losses: dict[int, list[Tensor]] = {client: [] for client in clients}
        lengths: dict[int, list[int]] = {client: [] for client in clients}
        for step in range(steps[clients[0]]):
            active = [client for client in clients if steps[client] > step]
            at_work.keep(len(active))
            batches = [next(stream) for stream in streams[: len(active)]]
            total, first = [], 0
            for _, alike in groupby(batches, key=_shapes):
                xs, ys = zip(*alike, strict=True)
                state = at_work.state(first, first + len(xs))
                logits = stacked_forward(layers, state, torch.stack(xs))
                total.append(mean_losses(logits, torch.stack(ys)))
                first += len(xs)
            loss = torch.cat(total)
            loss.sum().backward()  # type: ignore[no-untyped-call]
            at_work.step()
            for client, value, (_, y) in zip(active, loss.detach(), batches, strict=True):
                losses[client].append(value)
                lengths[client].append(len(y))
            if after_step is not None:
                after_step(step + 1)
        # moves nothing, without gradients; schedulers warn where their optimizer never stepped
        self._trainer.optimizers[0].step()
        for index, client in enumerate(clients):
            for number, length in zip(losses[client], lengths[client], strict=True):
                self._log.record("train/loss", number, prog_bar=True, batch_size=length)
            result = LocalResult(steps[client], self._log.collect())
            trained = {k: v[index] for k, v in at_work.changed.items()}
            self._trained[client, jobs[client].stream] = trained, result

    def _batches(self, client: int, key: Key, epochs: int) -> Iterator[Batch]:
        """Yield what the client would see alone: its random numbers are drawn in their own turn."""
        device, paused = self._trainer.strategy.root_device, []  # type: ignore[var-annotated]
        limit = batch_limit(self._trainer.limit_train_batches, self._data.num_batches(client))
        for epoch in range(epochs):
            with forked_generators(key, device, paused):
                stream = self._data.batches(client, "train", key=key.at(epoch=epoch), device=device)
                batches = list(islice(stream, limit))
            yield from batches


def unsupported_reason(trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    """Return why several clients cannot be trained at once, or ``None``.

    They can where nothing but the network, the mean cross-entropy and the optimizer takes part in
    a step, and where each of these treats clients apart.
    """
    name = type(module).__name__
    if not isinstance(module, FederatedModule):
        return f"{name} is not a FederatedModule"
    if (reason := unsupported(module)) is not None:
        return reason
    for hook in ("training_step", *LOCAL_HOOKS):
        if overrides(module, hook, FederatedModule):
            return f"{name} has its own {hook}"
    if (reason := needs_lightning_step(trainer, module)) is not None:
        return f"{reason} takes part in every step"
    if transfers_batches(trainer, module) or type(trainer.precision_plugin) is not Precision:
        return "a hook or plugin takes part in every batch"
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in callbacks)
    if trainer.accumulate_grad_batches != 1 or scheduled:
        return "gradients are accumulated"
    if trainer.gradient_clip_val:
        return "gradients are clipped"
    if any(config.interval == "step" for config in trainer.lr_scheduler_configs):
        return "a learning rate changes with the step"
    return unsupported_optimizer(trainer.optimizers[0], module)


def _shapes(batch: Batch) -> tuple[torch.Size, torch.Size]:
    x, y = batch
    return x.shape, y.shape
