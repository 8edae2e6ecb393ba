"""What differential privacy cannot be promised with, each refused with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedlightning.algorithms.aggregation import Aggregator, Mean
from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.core.messages import Up
from fedlightning.errors import ConfigError
from fedlightning.federation.sampling import (
    ClientSampler,
    PoissonSampler,
    SeparatedSampler,
    UniformSampler,
)
from fedlightning.federation.schedule import Schedule, Synchronous
from fedlightning.privacy.accounting import Cohorts
from fedlightning.privacy.example_level import ExampleDP
from fedlightning.privacy.settings import ClientDP

__all__ = ["check_algorithm", "check_example_level", "check_rounds", "check_shared", "cohorts_of"]

_KEY = "federation.privacy"


def check_algorithm(algorithm: Algorithm, aggregator: Aggregator | None) -> None:
    """Refuse an algorithm of which one client could move more than the clipping norm.

    Raises:
        ConfigError: The message has the reason.
    """
    name = algorithm.name
    if algorithm.share == "none":
        raise ConfigError(f"{_KEY}: {name} shares nothing, so nothing needs it; leave it out.")
    if algorithm.claims.get("weights") == "examples":
        raise ConfigError(
            f"{_KEY}: {name} weighs clients by their examples, and these numbers are private and "
            "would scale what one client moves; set algorithm.weights to uniform."
        )
    for member in getattr(algorithm, "algorithms", (algorithm,)):
        for method in ("accumulator", "aggregate", "weight"):
            if getattr(type(member), method) is not getattr(Algorithm, method):
                raise ConfigError(
                    f"{_KEY}: {member.name} has its own {method}(), of which it is not known how "
                    "far one client moves it; take an algorithm that averages updates."
                )
    if algorithm.server_data is not None:
        raise ConfigError(
            f"{_KEY}: under {name} the server trains on copies of clients' examples, which no "
            "noise hides; leave ServerData out."
        )
    for hook in algorithm.hooks:
        if hook.needs_states:
            raise ConfigError(
                f"{_KEY}: {type(hook).__name__} looks at every client's update at the server, and "
                "what it does with them is not known to be private; leave it out."
            )
        for message in hook.messages:
            if isinstance(message, Up) and message.merge not in ("mean", "weighted_mean"):
                raise ConfigError(
                    f"{_KEY}: {message.name!r} of {type(hook).__name__} merges by "
                    f"{message.merge!r}, of which it is not known how far one client moves it (its "
                    "sensitivity); only means are clipped and noised."
                )
    if aggregator is not None and type(aggregator) is not Mean:
        raise ConfigError(
            f"{_KEY}: federation.aggregator={aggregator!r} merges in a way of which it is not "
            "known how far one client moves it (its sensitivity); leave the aggregator out."
        )


def check_example_level(algorithm: Algorithm) -> None:
    """Refuse a server that trains on clients' examples beside clients that hide each of theirs.

    Raises:
        ConfigError: It does.
    """
    if algorithm.server_data is not None and any(isinstance(h, ExampleDP) for h in algorithm.hooks):
        raise ConfigError(
            f"federation.algorithm: under {algorithm.name} the server trains on copies of clients' "
            "examples, which ExampleDP hides from it; leave ServerData out."
        )


def check_rounds(
    privacy: ClientDP,
    sampler: ClientSampler | None,
    schedule: Schedule | None,
    clients_per_kernel: int,
    min_clients: int,
    policy: str,
) -> None:
    """Refuse rounds in which one client matters in another way than by its update.

    Raises:
        ConfigError: The message has the reason.
    """
    if not isinstance(schedule or Synchronous(), Synchronous):
        raise ConfigError(
            f"{_KEY}: under {type(schedule).__name__} who takes part in a round follows from the "
            "rounds before, and no theorem about sampling holds; use plain rounds (Synchronous)."
        )
    if isinstance(schedule, Synchronous) and schedule.over_selection > 1:
        raise ConfigError(
            f"{_KEY}: federation.schedule.over_selection={schedule.over_selection:g} lets one "
            "client take another one's place; set it to 1."
        )
    separation = sampler.separation if isinstance(sampler, SeparatedSampler) else 1
    if privacy.bands > separation:
        raise ConfigError(
            f"{_KEY}.bands={privacy.bands} needs two turns of a client to be as many rounds apart; "
            f"set federation.sampler to SeparatedSampler(separation={privacy.bands})."
        )
    if privacy.secure and separation > 1:
        raise ConfigError(
            f"{_KEY}.secure: a round that is run again after a crash is a second turn of its "
            "clients, too soon for SeparatedSampler; use PoissonSampler."
        )
    if clients_per_kernel > 1:
        raise ConfigError(
            f"{_KEY}: federation.clients_per_kernel={clients_per_kernel} trains clients together, "
            "so each moves the last bits of the others; set it to 1."
        )
    if min_clients > 1:
        raise ConfigError(
            f"{_KEY}: federation.min_clients={min_clients} ends a run by how many clients succeed, "
            "which their data decides; set it to 1."
        )
    if privacy.secure and policy != "skip":
        raise ConfigError(
            f"{_KEY}.secure: under federation.on_client_failure={policy} a client that fails ends "
            "the run, which tells of its data; set it to skip: it then counts as zero."
        )


def check_shared(
    shared: Iterable[str], parameters: Iterable[str], state: Mapping[str, Tensor]
) -> None:
    """Refuse shared buffers: statistics of examples, which are neither clipped nor noised.

    Args:
        shared: The keys that clients send.
        parameters: The keys of the module's parameters.
        state: The module's tensors.

    Raises:
        ConfigError: A floating-point or boolean buffer is shared; the message names it.
    """
    known = frozenset(parameters)
    for key in shared:
        value = state[key]
        merged = value.is_floating_point() or value.is_complex() or value.dtype is torch.bool
        if key not in known and merged:  # of integers the server keeps its own
            raise ConfigError(
                f"{_KEY}: {key} is shared and is a buffer, such as BatchNorm's running statistics: "
                "it is neither clipped nor noised. Set federation.buffers to local, use FedBN, or "
                "a network with GroupNorm."
            )


def cohorts_of(
    privacy: ClientDP, sampler: ClientSampler | None, population: int, size: float
) -> Cohorts:
    """Return how cohorts come about, as far as privacy can rest on it.

    Args:
        privacy: The settings.
        sampler: Chooses the cohorts.
        population: The number of clients that train.
        size: The (expected) number of clients in a cohort.
    """
    if type(sampler) is PoissonSampler:
        return Cohorts("poisson", sampler.expected(population), population, q=sampler.q)
    if type(sampler) is SeparatedSampler:
        size = sampler.expected(population)
        return Cohorts("poisson", size, population, sampler.q, sampler.separation)
    if sampler is None or type(sampler) is UniformSampler:
        return Cohorts("fixed", size, population)
    return Cohorts("chosen", size, population)
