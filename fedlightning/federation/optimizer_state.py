"""How long the state of clients' optimizers lives, and what goes with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.algorithms.optimizer_state import KeepsOptimizerState, PassesOptimizerStateOn
from fedlightning.core.validation import check_choice
from fedlightning.errors import ConfigError
from fedlightning.federation.schedule import Schedule, Synchronous
from fedlightning.federation.uplink import Compression, UplinkStage

__all__ = ["OptimizerState", "lifetime_of", "with_optimizer_state"]

OptimizerState = Literal["fresh", "keep", "pass_on"]
"""Momentum, moments and schedules by step start anew in each turn, live on with each client, or go
from client to client."""

_KEY = "federation.optimizer_state"


def lifetime_of(given: OptimizerState | None, schedule: Schedule | None) -> OptimizerState:
    """Return how long optimizer state lives; without a choice, what the schedule suggests.

    Raises:
        ConfigError: If it is not one of the choices.

    Example:
        >>> lifetime_of(None, None)
        'fresh'
    """
    if given is None:
        return "pass_on" if schedule is not None and schedule.sequential else "fresh"
    check_choice(_KEY, given, get_args(OptimizerState))
    return given


def with_optimizer_state(
    algorithm: Algorithm,
    lifetime: OptimizerState,
    schedule: Schedule | None,
    cohort_size: int | float | None,
    clients_per_kernel: int,
    stages: Sequence[UplinkStage],
) -> Algorithm:
    """Return the algorithm with the hook that keeps optimizer state or passes it on.

    Args:
        algorithm: What clients do.
        lifetime: How long optimizer state lives.
        schedule: When clients train.
        cohort_size: Clients a commit, as given.
        clients_per_kernel: How many train at once.
        stages: What updates pass on their way to the server.

    Raises:
        ConfigError: If something in the federation does not go with it; the message names it.
    """
    if lifetime == "fresh":
        return algorithm
    hook: ClientHook = KeepsOptimizerState() if lifetime == "keep" else PassesOptimizerStateOn()
    setting = f"{_KEY}={lifetime}"
    for other in algorithm.local:
        if reason := hook.clash(other) or other.clash(hook):
            raise ConfigError(
                f"{setting} and {algorithm.name} do not go together: {reason}; set it to fresh."
            )
    if clients_per_kernel > 1:
        raise ConfigError(
            f"federation.clients_per_kernel={clients_per_kernel}: clients cannot be trained at "
            f"once, because {setting} takes part in their steps; set it to 1."
        )
    if lifetime == "pass_on":
        _check_passing(algorithm, setting, schedule, cohort_size, stages)
    extended = copy.copy(algorithm)
    extended.local = (*algorithm.local, hook)
    return extended


def _check_passing(
    algorithm: Algorithm,
    setting: str,
    schedule: Schedule | None,
    cohort_size: int | float | None,
    stages: Sequence[UplinkStage],
) -> None:
    plain = type(schedule or Synchronous()) is Synchronous
    alone = plain and isinstance(cohort_size, int) and cohort_size == 1
    if not (alone or (schedule is not None and schedule.sequential)):
        raise ConfigError(
            f"{setting} needs clients that train one after another: set federation.schedule to "
            "Cyclic, or federation.cohort_size to 1."
        )
    if not algorithm.shares_all:
        raise ConfigError(
            f"{setting} and {algorithm.name} do not go together: clients do not send all that "
            "they train, and the optimizer's state of the rest would leave them; set it to keep or "
            "fresh."
        )
    for stage in stages:
        if not isinstance(stage, Compression):
            raise ConfigError(
                f"{setting} and federation.uplink={stage!r} do not go together: the stage would "
                "change the state that is passed on; set one of them to its default."
            )
