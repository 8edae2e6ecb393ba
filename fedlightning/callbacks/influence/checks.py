"""Runs to which Fed-Influence's recursion does not apply, refused by the setting that says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytorch_lightning as pl
import torch
from torch import nn

from fedlightning.algorithms.aggregation import WeightedMean
from fedlightning.algorithms.algorithm import WeightedUpdates
from fedlightning.datamodules import FederatedDataModule
from fedlightning.datamodules.client_roles import LARGE
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.steps import needs_lightning_step
from fedlightning.errors import ConfigError
from fedlightning.federation.schedule import Synchronous
from fedlightning.federation.settings import Federation

__all__ = ["check_federation", "check_training", "examined_clients", "moving_statistics"]

_NAME = "ClientInfluence"
_FULL = ("32-true", "64-true")


def check_federation(trainer: pl.Trainer, federation: Federation) -> None:
    """Refuse rounds that are no plain weighted mean of models trained by plain gradient steps.

    Args:
        trainer: The trainer.
        federation: How its clients learn together.

    Raises:
        ConfigError: There is such a setting; the message has it, its value and the way out.
    """
    for problem in _of_federation(federation):
        raise ConfigError(f"{_NAME}: {problem}")
    clip = trainer.gradient_clip_val
    if clip:
        raise ConfigError(
            f"{_NAME}: trainer.gradient_clip_val={clip}: clipped steps are not gradient steps; "
            "leave it out."
        )
    if str(trainer.precision) not in _FULL:
        raise ConfigError(
            f"{_NAME}: trainer.precision={trainer.precision}: differences between models need full "
            "precision; set it to 32-true."
        )


def _of_federation(federation: Federation) -> Iterator[str]:
    algorithm, name = federation.algorithm, federation.algorithm.name
    where = f"federation.algorithm={name}"
    plain = "take FedAvg, or an algorithm that only says what is trained and shared"
    if federation.schedule is not None and not isinstance(federation.schedule, Synchronous):
        yield (
            f"federation.schedule={federation.schedule!r}: the estimate is one of rounds; leave it "
            "out, or take Synchronous."
        )
    for hook in algorithm.hooks:
        yield (
            f"{where}: {type(hook).__name__} takes part in clients' training or at the server, "
            f"which the estimate does not know; {plain}."
        )
    if algorithm.server is not None:
        yield f"{where}: {algorithm.server!r} makes the mean a step of its own; {plain}."
    if algorithm.server_data is not None:
        yield f"{where}: the server trains on data of its own; {plain}."
    own_rule = type(algorithm.accumulator(WeightedMean())) is not WeightedUpdates
    if algorithm.merges_at_once or own_rule:
        yield f"{where}: it merges by a rule of its own, not by a weighted mean; {plain}."
    if algorithm.share == "none":
        yield f"{where}: it shares nothing, so no client has any influence; {plain}."
    for key in ("aggregator", "compression"):
        if (value := getattr(federation, key)) is not None:
            yield f"federation.{key}={value!r}: what is merged is no weighted mean; leave it out."
    if federation.uplink:
        yield (
            f"federation.uplink={federation.uplink!r}: updates are changed on their way; leave it "
            "out."
        )
    if (size := federation.clients_per_kernel) > 1:
        yield (
            f"federation.clients_per_kernel={size}: the steps of clients that train at once cannot "
            "be told apart; set it to 1."
        )


def check_training(trainer: pl.Trainer, module: pl.LightningModule, loop: FederatedLoop) -> None:
    """Refuse local steps that are not plain gradient steps, and parts that clients keep.

    Args:
        trainer: The trainer, with its optimizers.
        module: The clients' module.
        loop: The loop.

    Raises:
        ConfigError: Something is; the message says what, and the way out.
    """
    model, kept = type(module).__name__, loop.roles.kept
    if kept or loop.model.differ_by_client:
        what = f"clients keep {min(kept)}" if kept else "clients have networks of their own"
        raise ConfigError(
            f"{_NAME}: {what}, so that earlier rounds act on them past the global model; take an "
            "algorithm that shares all that it trains, such as FedAvg or FedBABU."
        )
    if (batches := trainer.accumulate_grad_batches) != 1:
        raise ConfigError(
            f"{_NAME}: trainer.accumulate_grad_batches={batches}: each batch must be a step; set "
            "it to 1 and make data.batch_size larger."
        )
    if (reason := needs_lightning_step(trainer, module)) is not None:
        raise ConfigError(
            f"{_NAME}: {reason} takes part in clients' steps, which must be plain gradient steps; "
            "do without it."
        )
    (optimizer,) = trainer.optimizers
    if type(optimizer) is not torch.optim.SGD:
        raise ConfigError(
            f"{_NAME}: {model} trains with {type(optimizer).__name__}; the estimate is for plain "
            "SGD: return torch.optim.SGD(self.parameters(), lr=...)."
        )
    for group in optimizer.param_groups:
        for key in ("momentum", "weight_decay", "maximize"):
            if group[key]:
                raise ConfigError(
                    f"{_NAME}: the optimizer of {model} has {key}={group[key]}; the estimate is "
                    f"for plain SGD: set it to {0 if key != 'maximize' else False}"
                    + (f" (model.{key}=0)." if key in module.hparams else ".")
                )
    for key, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.is_complex():
            raise ConfigError(
                f"{_NAME}: {key} of {model} is complex, which the estimate does not know; use a "
                "real-valued network."
            )


def examined_clients(given: Sequence[int] | None, data: FederatedDataModule) -> tuple[int, ...]:
    """Return the clients to examine, in ascending order.

    Args:
        given: Their ids; ``None`` means all that train.
        data: The clients' data.

    Raises:
        ConfigError: One of them does not train, or there are too many to take all.
    """
    training = data.training_clients
    if given is None:
        if len(training) > LARGE:
            raise ConfigError(
                f"{_NAME}: {len(training):,} clients, and a vector of the model's size for each; "
                "choose some with clients=[...]."
            )
        return tuple(training)
    for client in given:
        if client not in training:
            held_out = 0 <= client < data.num_clients
            why = "is held out (data.held_out_clients)" if held_out else "does not exist"
            raise ConfigError(
                f"{_NAME}: clients: client {client} {why}; choose from the {len(training):,} "
                "clients that train."
            )
    return tuple(sorted(set(given)))


def moving_statistics(module: nn.Module) -> list[str]:
    """Return the names of buffers that training moves and the estimate does not know."""
    return [
        f"{name}.running_mean" if name else "running_mean"
        for name, layer in module.named_modules()
        if getattr(layer, "running_mean", None) is not None
    ]
