"""What cannot be deployed, and why: asked at the server before the first round."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BaseFinetuning

from fedlightning.algorithms.aggregation import SecureSum
from fedlightning.callbacks import ClientInfluence, ForgettingCallback
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.engine.evaluation_epoch import EvaluationEpoch
from fedlightning.errors import ConfigError
from fedlightning.federation.schedule import Schedule, Synchronous
from fedlightning.federation.server import Server
from fedlightning.federation.settings import Federation
from fedlightning.federation.uplink.stage import UplinkStage

__all__ = ["refuse_algorithm", "refuse_module", "refuse_sums"]

_CALLBACKS: dict[type[pl.Callback], str] = {
    ClientInfluence: "measures clients' gradients and losses",
    ForgettingCallback: "evaluates clients",
    BaseFinetuning: "unfreezes layers, of which nodes do not hear",
}


def refuse_algorithm(federation: Federation, trainer: pl.Trainer) -> None:
    """Refuse settings that need examples, or clients, in the server's process.

    Args:
        federation: The federation's settings.
        trainer: The server's trainer.

    Raises:
        ConfigError: One does; the message says why.
    """
    algorithm = federation.algorithm
    if algorithm.server_data is not None:
        raise _refusal(
            f"federation.algorithm: {algorithm.name} trains on examples at the server, which has "
            "none"
        )
    if any(hook.needs_public for hook in algorithm.hooks):
        raise _refusal(
            f"federation.algorithm: {algorithm.name} needs public examples at the server, which "
            "has none"
        )
    if federation.clients_per_kernel > 1:
        raise _refusal(
            f"federation.clients_per_kernel={federation.clients_per_kernel}: clients are trained "
            "on machines of their own; set it to 1"
        )
    if trainer.world_size > 1:
        raise _refusal(
            f"trainer.devices={trainer.world_size}: the server trains nobody; set it to 1"
        )
    if isinstance(federation.aggregator, SecureSum):
        for stage in federation.stages:
            if type(stage).receive is not UplinkStage.receive:
                raise _refusal(
                    f"federation.uplink: {type(stage).__name__} reads single updates at the "
                    "server, which gets a sum alone under SecureSum; leave it out"
                )
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        for kind, what in _CALLBACKS.items():
            if isinstance(callback, kind):
                raise _refusal(
                    f"trainer.callbacks: {type(callback).__name__} {what} in the server's process; "
                    "leave it out"
                )


def refuse_module(
    trainer: pl.Trainer, module: pl.LightningModule, data: FederatedDataModule
) -> None:
    """Refuse a module or views whose evaluation needs several clients' examples in one place.

    Args:
        trainer: The server's trainer.
        module: The module, on its device.
        data: The clients' data, of which only sizes are here.

    Raises:
        ConfigError: One does; the message says why.
    """
    views = data.evaluation_views()
    central = next((view for view in views if view.is_central), None)
    if central is not None:
        raise _refusal(
            f"data: the view {central.name!r} has examples of no client, and the server has none"
        )
    if not trainer.limit_val_batches:
        return
    for view in views:
        if EvaluationEpoch(trainer, view.split).pools:
            stage = "validation" if view.split == "val" else "test"
            raise _refusal(
                f"model: {type(module).__name__} has hooks that see a whole {stage} epoch, and no "
                f"machine has all clients' examples; log in {stage}_step instead, or set "
                "trainer.limit_val_batches=0"
            )


def refuse_sums(server: Server, schedule: Schedule) -> None:
    """Refuse an algorithm or a schedule that needs single updates, where the server gets a sum.

    Args:
        server: The server, before the first round.
        schedule: Which updates make a commit.

    Raises:
        ConfigError: It needs them; the message says why.
    """
    reason = server.why_not_summed(not isinstance(schedule, Synchronous))
    if reason is not None:
        raise _refusal(
            "federation.aggregator: under SecureSum the server gets the sum of updates, and "
            f"{reason}"
        )


def _refusal(text: str) -> ConfigError:
    return ConfigError(f"cannot be deployed: {text}.")
