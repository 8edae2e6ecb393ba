"""`ForgettingCallback`: what the model forgets of a client while others train it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from fedlightning.core.arguments import NamedArguments
from fedlightning.core.main_metric import MainMetric
from fedlightning.core.messages import ClientUpdate
from fedlightning.core.metrics import canonical_name
from fedlightning.core.state import copy_into, live_state
from fedlightning.core.validation import check_integer
from fedlightning.datamodules import ClientTask
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.written_folder import folder_on_rank_0
from fedlightning.errors import ConfigError
from fedlightning.federation.failures import ClientFailure
from fedlightning.reporting.figures.forgetting import forgetting_figure
from fedlightning.reporting.figures.save import save_figure
from fedlightning.storage.run_layout import FORGETTING_FIGURE

__all__ = ["ForgettingCallback"]


class ForgettingCallback(NamedArguments, pl.Callback):
    r"""Measures forgetting: accuracy on a client's data right after its turn, minus later.

    .. math:: F_k = s (a_k(\theta_k) - a_k(\theta))

    where :math:`\theta_k` is the model as client :math:`k` has trained it in its last turn,
    :math:`\theta` the global model now, and :math:`a_k` the accuracy on the client's own data, or
    another metric that counts (``federation.main_metric``, else what the module logs first);
    :math:`s` is 1, or -1 if less of it is better, so that more is always forgotten.
    Where clients train one after another (``Cyclic``), :math:`\theta_k` was the global model, and
    :math:`F_k` is what the turns of others have cost the client. In synchronous rounds it is what
    the merging of models costs it, and then the rounds without it. Parts of the model that clients
    keep (heads, BatchNorm statistics) are the client's own in both.

    Logged are ``forgetting/mean`` and ``forgetting/max``, over the clients that have had a turn,
    once an update of another one has been merged since or together with theirs. Below zero is a
    gain. At the end of training the run folder gets ``forgetting.png``. Training is not changed.

    Costs one evaluation of a client after each of its turns, and every ``every_n_rounds`` rounds
    one of every client that has had a turn. Of very many clients a sample takes part
    (``eval_clients`` of :class:`~fedlightning.FederatedDataModule`).

    Args:
        every_n_rounds: How often it is measured; after the last round it always is.
        split: Which of the clients' data: ``test``, ``val``, ``train``, or one of the data's own.

    Raises:
        ConfigError: A value is out of its range.

    Source:
        Qu, Zhou, Liang, Xia, Wang, Adeli, Fei-Fei, Rubin. Rethinking Architecture Design for
        Tackling Data Heterogeneity in Federated Learning. CVPR 2022.
        https://arxiv.org/abs/2106.06047

    Example:
        >>> from fedlightning import FederatedTrainer
        >>> callback = ForgettingCallback(every_n_rounds=5)
        >>> trainer = FederatedTrainer(callbacks=[callback], logger=False)
    """

    def __init__(self, every_n_rounds: int = 1, split: str = "test") -> None:
        self.every_n_rounds = check_integer("every_n_rounds", every_n_rounds, at_least=1)
        self.split = split
        self.after: dict[int, float] = {}
        self.now: dict[int, float] = {}
        self.metric: MainMetric | None = None  # known when something was measured
        self._curve: list[tuple[int, float, float]] = []
        self._new: dict[int, float] = {}
        self._measured: frozenset[int] = frozenset()
        self._alone: int | None = None  # the client whose update was the last commit

    @property
    def forgetting(self) -> dict[int, float]:
        """What was forgotten of each client when it was last measured, by client."""
        sign = 1 if self.metric is None else self.metric.sign
        return {client: sign * (self.after[client] - now) for client, now in self.now.items()}

    # -- a turn ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note which clients are measured."""
        self._new, self._measured = {}, frozenset(_loop_of(trainer).data.evaluated_clients)

    def on_client_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, update: ClientUpdate
    ) -> None:
        """Measure a client's own model."""
        loop, client = _loop_of(trainer), update.client
        if client in self._measured and loop.data.num_examples(client, self.split):
            self._new[client] = self._value(loop, client)

    def on_client_failure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, failure: ClientFailure
    ) -> None:
        """Forget a turn that does not count."""
        if not failure.retried:
            self._new.pop(failure.client, None)

    def on_aggregate_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear of all workers' clients."""
        loop = _loop_of(trainer)
        for part, metric in loop.workers.gather((dict(self._new), self.metric)):
            self.after |= part
            self.metric = self.metric or metric
        self._new = {}
        clients = {job.client for job in loop.jobs}
        self._alone = clients.pop() if len(clients) == 1 else None

    # -- a round ---------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what is forgotten by now, and log it."""
        done = trainer.current_epoch + 1
        if done % self.every_n_rounds and done != trainer.max_epochs:
            return
        loop = _loop_of(trainer)
        due = [client for client in sorted(self.after) if client != self._alone]
        mine: dict[int, float] = {}
        failure: Exception | None = None
        try:
            for place in filter(loop.workers.owns, range(len(due))):
                loop.workers.check()
                mine[due[place]] = self._later_value(loop, due[place])
        except Exception as error:
            failure = error
        loop.workers.agree(failure)
        self.now = {c: a for part in loop.workers.gather(mine) for c, a in part.items()}
        found = self.forgetting.values()
        if not found:
            return
        mean, largest = sum(found) / len(found), max(found)
        self._curve.append((trainer.current_epoch, mean, largest))
        for name, value in (("mean", mean), ("max", largest)):
            pl_module.log(f"forgetting/{name}", value, on_epoch=True, batch_size=1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the figure."""
        folder = folder_on_rank_0(trainer)
        if folder is None or not self._curve:
            return
        rounds, mean, largest = zip(*self._curve, strict=True)
        figure = forgetting_figure(
            rounds,
            mean,
            largest,
            self.after,
            self.now,
            _loop_of(trainer).data.client_names,
            self.metric,
        )
        save_figure(figure, folder / FORGETTING_FIGURE)

    # -- the metric ------------------------------------------------------------------------------

    def _value(self, loop: FederatedLoop, client: int) -> float:
        task = ClientTask(client, self.split, loop.data.num_examples(client, self.split))
        metrics = loop.evaluator.evaluate(task)
        if self.metric is None or self.metric.name not in map(canonical_name, metrics):
            self.metric = _metric_of(metrics, loop, self.split)
        name = self.metric.name
        return next(value for key, value in metrics.items() if canonical_name(key) == name)

    def _later_value(self, loop: FederatedLoop, client: int) -> float:
        """Return the metric of the global model with the parts that the client keeps."""
        state = live_state(loop.module)
        own = loop.model.start_of(client, loop.client_store.get(client) or {})
        before = {key: state[key].clone() for key in own}
        copy_into(state, own)
        try:
            return self._value(loop, client)
        finally:
            copy_into(state, before)

    # -- checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with."""
        return {
            "after": dict(self.after),
            "now": dict(self.now),
            "curve": [list(point) for point in self._curve],
            "metric": None if self.metric is None else [self.metric.name, self.metric.mode],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.after, self.now = dict(state_dict["after"]), dict(state_dict["now"])
        self._curve = [(int(r), mean, largest) for r, mean, largest in state_dict["curve"]]
        saved = state_dict.get("metric")  # earlier releases knew accuracy alone, or nothing yet
        self.metric = MainMetric(*saved) if saved else MainMetric() if self.after else None


def _metric_of(metrics: Mapping[str, float], loop: FederatedLoop, split: str) -> MainMetric:
    """Return the metric that counts, which has to be measured on the split."""
    federation = loop.federation
    known = list(dict.fromkeys(map(canonical_name, metrics)))
    given = federation.main_metric
    if not known or (given is not None and canonical_name(given) not in known):
        what = "nothing" if not known else f"no {given}"
        raise ConfigError(
            f"ForgettingCallback: the module logs {what} on the split {split!r} (it logs "
            f"{', '.join(metrics) or 'nothing'}); log a metric in test_step, such as 'global/acc', "
            "or name another split."
        )
    return MainMetric.chosen(known, given, federation.main_metric_mode)


def _loop_of(trainer: pl.Trainer) -> FederatedLoop:
    if not isinstance(trainer.fit_loop, FederatedLoop):
        raise ConfigError("ForgettingCallback needs a FederatedTrainer.")
    return trainer.fit_loop
