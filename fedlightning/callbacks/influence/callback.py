"""`ClientInfluence`: what the global model would be, had a client never taken part."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from fedlightning.algorithms.context import ClientContext
from fedlightning.callbacks.influence.checks import (
    check_federation,
    check_training,
    examined_clients,
    moving_statistics,
)
from fedlightning.callbacks.influence.cost import batches_are_stochastic, describe_cost
from fedlightning.callbacks.influence.curvature import carry_through
from fedlightning.callbacks.influence.estimates import Estimates, Method, Truncation
from fedlightning.callbacks.influence.results import influence_records, write_influence
from fedlightning.core.arguments import NamedArguments
from fedlightning.core.batches import Batch
from fedlightning.core.messages import ClientUpdate
from fedlightning.core.state import State
from fedlightning.core.validation import check_integer
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.written_folder import folder_on_rank_0
from fedlightning.errors import CheckpointError, ConfigError, did_you_mean
from fedlightning.reporting.influence_table import InfluenceRecord

__all__ = ["ClientInfluence"]

_log = logging.getLogger(f"pytorch_lightning.{__name__}")  # is shown where Lightning's own is
_OWN = "own"


@dataclass(frozen=True)
class _Ended:
    """One client update, where it was trained.

    Args:
        weight: Its weight in the mean.
        carried: The estimates after its steps.
        model: The parameters that it sends; empty if the client is not examined.
    """

    weight: float
    carried: Mapping[int, State]
    model: State


class ClientInfluence(NamedArguments, pl.Callback):
    r"""Estimates what the global model would be without a client, while it is trained.

    Nothing is trained again. It is an observer: with it a run gives the same bits. Each examined
    client has a vector of the model's size, which goes through the local steps of all others by
    products with the Hessian of each batch's loss,

    .. math:: \epsilon_t = \sum_{k \in C_t \setminus c} \frac{n_k}{N(C_t \setminus c)}
        \prod_i (I - \eta H^k_{t,i})\, \epsilon_{t-1} + [w_t(C_t \setminus c) - w_t].

    At the end :math:`w_T + \epsilon_T` is evaluated in place of :math:`w_T` on the test data. The
    run folder gets ``influence.csv``, ranked from the lowest influence on ``metric`` to the
    highest, and ``influence.png``. With a loss the first ones are bad clients: it is lower without
    them. ``python -m fedlightning influence`` makes the truth: runs in which a client is left out.

    The paper derives it for rounds of plain SGD with full gradients and a plain weighted mean. Any
    other rounds are refused; where batches are a part of a client's data the Hessian is that of the
    batch, and the run says so. Statistics of BatchNorm stay those of the global model.

    Args:
        clients: The clients to examine; ``None`` means all that train. Memory and checkpoints grow
            by a model for each.
        method: ``exact`` products with the Hessian; ``layerwise``, with its blocks for each
            parameter tensor, which takes a product for each of them; ``fisher``, with the mean of
            outer products of single examples' gradients in each block; ``truncated`` leaves out the
            sum and keeps the bracket, which costs nothing and is worth little.
        truncation: For ``layerwise`` and ``fisher``, what becomes of a layer whose propagated
            estimate is longer than the estimate itself: ``layer`` (the default) keeps its bracket
            alone from then on, ``client`` leaves out the terms of those clients that make it
            longer, ``never`` keeps all.
        fisher_examples: How many examples of a batch have their gradients taken for ``fisher``.
        metric: The metric on test data by which clients are ranked.

    Attributes:
        estimates: The vectors, once training has started.
        results: One record per examined client, at the end of training.

    Raises:
        ConfigError: A value is not one of the choices, or the run is not of the kind above.

    Source:
        Xue, Niu, Zheng, Tang, Lyu, Wu, Chen. Toward Understanding the Influence of Individual
        Clients in Federated Learning. AAAI 2021. https://arxiv.org/abs/2012.10936

    Example:
        >>> from fedlightning import FedAvg, FederatedTrainer, Federation
        >>> from fedlightning.datamodules import Digits
        >>> from fedlightning.models import MLP
        >>> influence = ClientInfluence(clients=[0, 3])
        >>> trainer = FederatedTrainer(
        ...     federation=Federation(algorithm=FedAvg(), cohort_size=4), max_epochs=2,
        ...     callbacks=[influence], logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False)
        >>> model = MLP(in_features=64, hidden=[8], num_classes=10, momentum=0.0)
        >>> trainer.fit(model, datamodule=Digits(num_clients=8, batch_size=1000))
        >>> sorted(record.client_id for record in influence.results)
        [0, 3]
    """

    estimates: Estimates

    def __init__(
        self,
        clients: list[int] | None = None,
        method: Method = "exact",
        truncation: Truncation | None = None,
        fisher_examples: int = 50,
        metric: str = "global/loss",
    ) -> None:
        _check_choice("method", method, get_args(Method))
        if truncation is not None:
            _check_choice("truncation", truncation, get_args(Truncation))
        by_layer = method in ("layerwise", "fisher")
        if truncation not in (None, "never") and not by_layer:
            raise ConfigError(
                f"ClientInfluence: truncation={truncation!r} needs a Hessian of blocks, which "
                f"method={method!r} does not have; set method to 'layerwise' or 'fisher'."
            )
        if clients is not None:
            if not isinstance(clients, (list, tuple, range)) or not clients:
                raise ConfigError(
                    f"ClientInfluence: clients must be a list of client ids, got {clients!r}; "
                    "leave it out to examine all."
                )
            for client in clients:
                check_integer("ClientInfluence: clients", client, at_least=0)
        self.clients = clients
        self.method: Method = method
        self.truncation: Truncation = truncation or ("layer" if by_layer else "never")
        self.fisher_examples = check_integer("fisher_examples", fisher_examples, at_least=1)
        self.metric = metric
        self.results: list[InfluenceRecord] = []
        self._loop: FederatedLoop | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._keys: tuple[str, ...] = ()
        self._carried: tuple[int, dict[int, State]] | None = None
        self._ended: dict[int, _Ended] = {}
        self._owners: dict[int, tuple[int, float]] = {}

    # -- before the first round ----------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse federations whose rounds are not of the kind that the estimate is for."""
        if stage != "fit":
            return
        if not isinstance(trainer.fit_loop, FederatedLoop):
            raise ConfigError("ClientInfluence needs a FederatedTrainer.")
        check_federation(trainer, trainer.fit_loop.federation)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse other steps than plain SGD's, and say what the estimates will cost."""
        loop = trainer.fit_loop
        assert isinstance(loop, FederatedLoop), "setup() has checked it"
        check_training(trainer, pl_module, loop)
        self._loop = loop
        self._keys = tuple(k for k, p in pl_module.named_parameters() if p.requires_grad)
        self._continue(loop, examined_clients(self.clients, loop.data))
        parameters = self._parameters(pl_module)
        size = sum(value.numel() for value in parameters.values())
        width = max(value.element_size() for value in parameters.values())
        cost = describe_cost(
            loop, self.method, len(self.estimates.clients), len(parameters), size, width,
            self.fisher_examples,
        )  # fmt: skip
        if trainer.is_global_zero:
            _log.info(cost)
        if batches_are_stochastic(loop.data, trainer.limit_train_batches):
            rank_zero_warn(
                "ClientInfluence: a batch is a part of a client's data, and the paper assumes full "
                "gradients: the estimate takes the Hessian of each batch. With data.batch_size as "
                "large as a client's data it is the paper's."
            )
        if moving := moving_statistics(pl_module):
            rank_zero_warn(
                f"ClientInfluence: statistics such as {moving[0]} are no parameters: the estimate "
                "takes those of the global model. GroupNorm has none."
            )

    def _continue(self, loop: FederatedLoop, clients: tuple[int, ...]) -> None:
        """Start anew, or from what a checkpoint or an earlier fit has left.

        Raises:
            CheckpointError: The checkpoint's estimates were made with other settings.
            ConfigError: The run has rounds that were not observed.
        """
        loaded, self._loaded = self._loaded, None
        done, before = loop.rounds_aggregated, getattr(self, "estimates", None)
        estimates = Estimates(clients, self.method, self.truncation)
        if loaded is not None:
            settings = self._settings(clients)
            for key, value in loaded["settings"].items():
                if value != settings[key]:
                    raise CheckpointError(
                        f"ClientInfluence: cannot resume: {key} is {settings[key]!r}, and "
                        f"{value!r} in the checkpoint; restore it."
                    )
            device = next(loop.module.parameters()).device
            estimates.load_state_dict(loaded["estimates"], device)
        elif done and before is not None and before.clients == clients:
            estimates = before
        if estimates.rounds != done:
            raise ConfigError(
                f"ClientInfluence has observed {estimates.rounds} of the run's {done} rounds, and "
                "needs all of them: start the run anew with it, or resume without it."
            )
        self.estimates = estimates
        self._carried, self._ended, self._owners = None, {}, {}

    def _parameters(self, module: pl.LightningModule) -> dict[str, Tensor]:
        named = dict(module.named_parameters())
        return {key: named[key].detach() for key in self._keys}

    # -- in a round ----------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a round with its first client; hear which worker has trained whom."""
        if batch_idx:
            return
        loop = self._the_loop
        self.estimates.start_round(self._parameters(pl_module))
        mine = {client: ended.weight for client, ended in self._ended.items()}
        self._owners = {
            client: (rank, weight)
            for rank, trained in enumerate(loop.workers.gather(mine))
            for client, weight in trained.items()
        }

    def on_local_loss(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        context: ClientContext,
        batch: Batch,
        loss: Tensor,
    ) -> None:
        """Carry the estimates through a local step.

        Raises:
            ConfigError: The client trains other parameters than at the start, or they have no
                second derivatives.
        """
        if self.method == "truncated":
            return
        carried = context.scratch.get(self.state_key)
        if carried is None:
            if tuple(context.parameters) != self._keys:
                raise ConfigError(
                    "ClientInfluence: other parameters are trained than in the first round, so "
                    "there is no one recursion; freeze the same ones from first to last."
                )
            carried = context.scratch[self.state_key] = self.estimates.directions(context.client)
            self._carried = context.client, carried
        if carried and loss.requires_grad:
            directions = list(carried.values())
            carry_through(context, batch, loss, directions, self.method, self.fisher_examples)

    def on_client_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, update: ClientUpdate
    ) -> None:
        """Keep what a client's steps have made of the estimates, and its model if need be."""
        client, estimates = update.client, self.estimates
        known = self._carried if self._carried is not None else (-1, {})
        carried = known[1] if known[0] == client else estimates.directions(client)
        model = {key: update.state[key].clone() for key in self._keys if client in estimates.turns}
        weight = self._the_loop.federation.algorithm.weight(update)
        self._ended[client] = _Ended(weight, carried, model)
        self._carried = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take in a client's update, in the order of aggregation, on every worker."""
        client = batch.client
        ended = self._ended.pop(client, None)
        if "failure" in outputs:
            return
        if self._the_loop.workers.size > 1:
            ended = self._exchanged(client, ended, pl_module)
        assert ended is not None, "every update that counts was seen by on_client_end"
        self.estimates.add(client, ended.weight, ended.carried, ended.model)

    def _exchanged(self, client: int, ended: _Ended | None, module: pl.LightningModule) -> _Ended:
        """Return on every worker what the one that trained a client has of it."""
        owner, weight = self._owners[client]
        parameters, layout = self._parameters(module), self.estimates.layout(client)
        places = {f"{c}/{key}": (c, key) for c, keys in layout.items() for key in keys}
        room = {place: torch.empty_like(parameters[key]) for place, (_, key) in places.items()}
        if client in self.estimates.turns:
            room |= {f"{_OWN}/{k}": torch.empty_like(value) for k, value in parameters.items()}
        mine: State | None = None
        if ended is not None:
            mine = {place: ended.carried[c][key] for place, (c, key) in places.items()}
            mine |= {f"{_OWN}/{key}": value for key, value in ended.model.items()}
        received = self._the_loop.workers.send(mine, room, owner)
        carried = {c: {key: received[f"{c}/{key}"] for key in keys} for c, keys in layout.items()}
        model = {k: received[f"{_OWN}/{k}"] for k in parameters if f"{_OWN}/{k}" in received}
        return _Ended(weight, carried, model)

    def on_aggregate_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the step of the recursion."""
        self._catch_up()

    def _catch_up(self) -> None:
        """Take the step, unless that was done: the round counts from its aggregation on."""
        loop = self._the_loop
        if loop.rounds_aggregated > self.estimates.rounds:
            self.estimates.finish_round(self._parameters(loop.module))

    # -- after the last round ------------------------------------------------------------------

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what the estimates mean for metrics on test data; write table and figure."""
        if not trainer.current_epoch:
            return
        parameters = self._parameters(pl_module)
        self.results = influence_records(self._the_loop, self.estimates, parameters, self.metric)
        if (folder := folder_on_rank_0(trainer)) is not None:
            write_influence(folder, self.results, self.metric)

    def parameters(self, client: int) -> State:
        """Return a client's estimate: (parameters without it) - parameters, by key.

        Args:
            client: The id of an examined client.

        Raises:
            ConfigError: The client is not examined.
        """
        if client not in self.estimates.turns:
            raise ConfigError(f"ClientInfluence: client {client} is not examined; see `clients`.")
        return self.estimates.value(client, self._parameters(self._the_loop.module))

    @property
    def _the_loop(self) -> FederatedLoop:
        assert self._loop is not None, "on_train_start comes first"
        return self._loop

    # -- checkpoints ---------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint; a run may have estimates by several methods."""
        return self._generate_state_key(method=self.method, truncation=self.truncation)

    def state_dict(self) -> dict[str, Any]:
        """Return the estimates as of the last round that a checkpoint made now would hold."""
        if self._loop is None:
            return {}
        self._catch_up()
        return {
            "settings": self._settings(self.estimates.clients),
            "estimates": self.estimates.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._loaded = state_dict or None

    def _settings(self, clients: tuple[int, ...]) -> dict[str, Any]:
        return {
            "clients": list(clients),
            "fisher_examples": self.fisher_examples,
        }


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"ClientInfluence: {name} must be one of {', '.join(choices)}, got {value!r}."
            f"{did_you_mean(str(value), choices)}"
        )
