"""The settings that make a training federated."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import get_args

from fedlightning.algorithms import Algorithm, FedBABU
from fedlightning.algorithms.aggregation import Aggregator, SecureSum
from fedlightning.core.arguments import NamedArguments
from fedlightning.core.parts import Buffers
from fedlightning.core.seeding import Key
from fedlightning.core.validation import (
    check_choice,
    check_instance,
    check_integer,
    check_number,
    is_integer,
)
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.federation.failures import Policy
from fedlightning.federation.optimizer_state import (
    OptimizerState,
    lifetime_of,
    with_optimizer_state,
)
from fedlightning.federation.privacy_checks import (
    check_algorithm,
    check_example_level,
    check_rounds,
)
from fedlightning.federation.sampling import (
    ClientSampler,
    UniformSampler,
    check_cohort_size,
    choose,
    cohort_count,
)
from fedlightning.federation.schedule import Schedule, Synchronous
from fedlightning.federation.server import check_robust
from fedlightning.federation.uplink import (
    ClipNorm,
    Compression,
    FixedPoint,
    PrivateClip,
    UplinkStage,
)
from fedlightning.privacy.settings import ClientDP

__all__ = ["Federation"]

_VERY_STALE = 2**20
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Federation(NamedArguments):
    """How clients learn together.

    Args:
        algorithm: What is trained, what is shared, how it is merged.
        aggregator: What the server makes of a cohort's updates; ``None`` means the algorithm's
            weighted mean. Robust rules are in :mod:`fedlightning.algorithms.aggregation`.
        compression: How clients write their updates in fewer bytes; ``None`` sends them as they
            are.
        uplink: Stages that an update passes between client and server, in order, such as
            ``ClipNorm`` and ``GaussianNoise`` (:mod:`fedlightning.federation.uplink`);
            ``compression`` comes after them.
        schedule: Which client updates make the next global model; ``None`` means rounds
            (:class:`~fedlightning.federation.schedule.Synchronous`).
        optimizer_state: How long the state of clients' optimizers (momentum, moments, numbers of
            steps) and their place in a schedule by step live. ``fresh``: both start anew in every
            turn of a client. ``keep``: they live on with the client, from its turn to its next.
            ``pass_on``: they go from client to client with the model, where clients train one after
            another. ``None`` means ``pass_on`` with such a schedule (``Cyclic``), else ``fresh``.
            It concerns the module's optimizers; those of further models that an algorithm trains
            (Ditto's) are not touched.
        buffers: What becomes of the module's buffers (the running statistics of BatchNorm):
            ``average`` treats them as parameters are, which is the mean of what clients share;
            ``local`` leaves each client its own, integers included; ``exclude`` makes every turn
            start from the initial ones.
        cohort_size: Clients a round: an int is a number of clients, a float in (0, 1] a share of
            all that train; ``None`` where the sampler decides (:class:`PoissonSampler`).
        local_epochs: Passes over its own data that a client makes each time it is chosen.
        local_steps: Optimizer steps that each client takes instead, however many examples it has:
            it passes over its data as often as it needs to, the last time in part.
        head: Key prefix or prefixes of the head. Needed for a plain LightningModule without an
            attribute ``head``; overrides a FederatedModule's own.
        sampler: How the cohort is chosen; ``None`` means uniformly (:class:`UniformSampler`).
        num_threads: CPU threads that torch uses in this process; ``None`` leaves torch's own
            choice. One is the fastest for small models and on a busy machine, and results do not
            depend on the number of cores.
        channels_last: Whether 4-D weights lie in memory with channels last; ``None`` means where
            that makes convolutions faster: on CPUs, and on GPUs in half precision. Kernels differ,
            so the last bits do: replaying a published run needs a definite choice.
        keep_freed_memory: Whether the C allocator keeps the memory that training steps free, for
            the next step, until the run ends: faster on CPUs with glibc, for some more memory
            (``docs/performance.md``). Elsewhere, and with another allocator, it does nothing.
        clients_per_kernel: How many clients are trained at once, as one network with grouped
            operations (see :mod:`fedlightning.engine.grouped.training`): several times as fast
            where the network and its batches are so small that calls cost more than arithmetic.
            Refused where anything but a plain network, cross-entropy and optimizer takes part.
            Results differ in the last bits, also from one number to another.
        personal_memory_mb: How many megabytes of what clients keep (FedPer's heads, say) may lie in
            memory; more than that goes to files in the run folder, under ``personal``.
        on_client_failure: What it means when a client raises, is too late, or gives an update that
            cannot be merged (not finite; other keys, shapes or dtypes; no weight). ``fail`` ends
            the run; ``skip`` makes the round without that client; ``retry`` trains it again with
            the same random numbers, so that a fault that passes leaves no trace, and ends the run
            if it does not pass.
        max_retries: How often ``retry`` tries a client again, and how often a command line starts
            workers that died again.
        min_clients: Least number of updates that make a round; with fewer the run ends.
        client_timeout: Seconds that a client may train; ``None`` means any. The clock is looked at
            after every local step, so a step that never ends is not interrupted.
        seed: Seed of cohorts, data order and dropout; ``None`` means ``seed_everything``'s, else 0.
        leave_out: Clients that are struck from every cohort after it was drawn. All others meet in
            the same rounds, with the same batches and random numbers, as if nobody were struck; a
            round of which nobody is left changes nothing. ``python -m fedlightning influence``
            replays runs so.
        privacy: The differential privacy of whole clients (:class:`~fedlightning.ClientDP`);
            ``None`` promises none.
        main_metric: The metric that counts, by its short name (``f1``, ``mae``, ``loss``): summary,
            curves, figures, tests and reports follow it. ``None`` means accuracy, or what the
            module logs first on test data where it logs none.
        main_metric_mode: ``max`` if more of it is better, ``min`` if less is; ``None`` follows from
            the name, ``min`` for losses and errors.

    Raises:
        ConfigError: If a value is out of its range.

    Example:
        >>> Federation(cohort_size=10, local_epochs=4).cohort_count(population=100)
        10
    """

    algorithm: Algorithm = field(default_factory=FedBABU)
    aggregator: Aggregator | None = None
    compression: Compression | None = None
    uplink: list[UplinkStage] = field(default_factory=list)
    schedule: Schedule | None = None
    optimizer_state: OptimizerState | None = None
    buffers: Buffers = "average"
    cohort_size: int | float | None = 0.1
    local_epochs: int = 1
    local_steps: int | None = None
    head: str | list[str] | None = None
    sampler: ClientSampler | None = None
    num_threads: int | None = 1
    channels_last: bool | None = None
    keep_freed_memory: bool = True
    clients_per_kernel: int = 1
    personal_memory_mb: float = 256.0
    on_client_failure: Policy = "fail"
    max_retries: int = 2
    min_clients: int = 1
    client_timeout: float | None = None
    seed: int | None = None
    leave_out: list[int] = field(default_factory=list)
    privacy: ClientDP | None = None
    main_metric: str | None = None
    main_metric_mode: str | None = None

    def __post_init__(self) -> None:
        check_instance("federation.algorithm", self.algorithm, Algorithm)
        self._check_server()
        for name in ("local_epochs", "clients_per_kernel"):
            check_integer(f"federation.{name}", getattr(self, name), at_least=1)
        if self.local_steps is not None:
            self._check_local_steps()
        if self.sampler is not None:
            check_instance("federation.sampler", self.sampler, ClientSampler)
        self._check_leave_out()
        if self.seed is not None and not (is_integer(self.seed) and 0 <= self.seed < 2**32):
            raise ConfigError(f"federation.seed must be within 0..4294967295, got {self.seed}.")
        if self.num_threads is not None:
            check_integer(
                "federation.num_threads", self.num_threads, at_least=1, at_most=_MOST_THREADS
            )
        megabytes = self.personal_memory_mb
        if not (isinstance(megabytes, (int, float)) and megabytes >= 0):
            raise ConfigError(f"federation.personal_memory_mb must be >= 0, got {megabytes}.")
        self._check_cohort_size()
        self._check_faults()
        check_choice("federation.buffers", self.buffers, get_args(Buffers))
        if self.privacy is not None:
            check_instance("federation.privacy", self.privacy, ClientDP)
            check_rounds(
                self.privacy,
                self.sampler,
                self.schedule,
                self.clients_per_kernel,
                self.min_clients,
                self.on_client_failure,
            )
            check_algorithm(self.algorithm, self.aggregator)
        check_example_level(self.algorithm)
        if self.main_metric_mode is not None:
            check_choice("federation.main_metric_mode", self.main_metric_mode, ("min", "max"))
        _ = self.client_algorithm

    def _check_cohort_size(self) -> None:
        size, sampler = self.cohort_size, self.sampler
        if self.sized:
            if size is None:
                raise ConfigError(
                    "federation.cohort_size=null needs a sampler that says how many clients make a "
                    "round; set federation.sampler to PoissonSampler, or give a number or a share."
                )
            check_cohort_size(size)
        elif size is not None:
            raise ConfigError(
                f"federation.cohort_size={size}: cohorts of {type(sampler).__name__} have any "
                "size; set it to null."
            )
        schedule = self.schedule
        if not self.sized and schedule is not None and not schedule.any_cohort:
            raise ConfigError(
                f"federation.schedule: {schedule!r} needs cohorts of one size, which "
                f"{type(sampler).__name__} does not give; use another sampler, or plain rounds."
            )

    def _check_leave_out(self) -> None:
        if not isinstance(self.leave_out, (list, tuple)):
            raise ConfigError(
                f"federation.leave_out must be a list of client ids, got {self.leave_out!r}."
            )
        for client in self.leave_out:
            check_integer("federation.leave_out", client, at_least=0)

    def _check_local_steps(self) -> None:
        check_integer("federation.local_steps", self.local_steps, at_least=1)
        if self.local_epochs != 1:
            raise ConfigError(
                f"federation.local_steps={self.local_steps} and federation.local_epochs="
                f"{self.local_epochs} both say how long a client trains; leave one of them out."
            )
        if self.clients_per_kernel > 1:
            raise ConfigError(
                "federation.local_steps needs federation.clients_per_kernel=1: clients that train "
                "at once pass over their data together."
            )
        if any(hook.has_phases for hook in self.algorithm.hooks):
            raise ConfigError(
                f"federation.local_steps: {self.algorithm.name} divides a client's training by "
                "epochs; use federation.local_epochs."
            )

    def _check_server(self) -> None:
        for name, kind in (("aggregator", Aggregator), ("compression", Compression)):
            value = getattr(self, name)
            if value is not None:
                check_instance(f"federation.{name}", value, kind)
            if value is not None and self.algorithm.share == "none":
                raise ConfigError(
                    f"federation.{name}: {self.algorithm.name} shares nothing, so {value!r} has "
                    "nothing to do; leave it out."
                )
        if not isinstance(self.uplink, (list, tuple)):
            raise ConfigError(
                f"federation.uplink must be a list of UplinkStage, got {self.uplink!r}."
            )
        for stage in self.uplink:
            check_instance("federation.uplink", stage, UplinkStage)
        given = [*self.uplink, *([self.compression] if self.compression is not None else [])]
        if any(isinstance(stage, Compression) for stage in given[:-1]):
            raise ConfigError(
                "federation.uplink: compression must be the last stage, and there can be only one."
            )
        if self.schedule is not None:
            check_instance("federation.schedule", self.schedule, Schedule)
            self._check_stale(self.schedule)
        if self.aggregator is None:
            return
        check_robust(self.aggregator, self.client_algorithm.hooks)
        if self.aggregator.uniform and self.algorithm.weights != "uniform":
            raise ConfigError(
                f"federation.aggregator: {self.aggregator.name} adds clients up without weights, "
                f"and {self.algorithm.name} weighs them by examples; set algorithm.weights to "
                "uniform."
            )
        if isinstance(self.aggregator, SecureSum) and any(
            isinstance(stage, Compression) for stage in self.stages
        ):
            raise ConfigError(
                "federation.aggregator: SecureSum adds integers up that no server can decode one "
                "by one, and compressed updates must be; leave the compression out."
            )
        if (
            self.algorithm.merges_at_once
            and len(inspect.signature(self.algorithm.aggregate).parameters) < 2
        ):
            raise ConfigError(
                f"federation.aggregator: {self.algorithm.name} has its own aggregate(updates); "
                "give it a second argument `merge`, or leave the aggregator out."
            )
        if isinstance(self.cohort_size, int) and self._has_rounds:
            self.aggregator.check(self.cohort_size)

    def _check_stale(self, schedule: Schedule) -> None:
        name = self.algorithm.name
        if schedule.stale and any(hook.needs_newest for hook in self.algorithm.hooks):
            raise ConfigError(
                f"federation.schedule: under {type(schedule).__name__} clients start from older "
                f"models, and what they send in {name} would take the place of newer ones; use "
                "Synchronous or Cyclic."
            )
        if schedule.weight(_VERY_STALE) != 1 and any(h.needs_whole for h in self.algorithm.hooks):
            raise ConfigError(
                f"federation.schedule.weighting: in {name} client and server remember the same "
                "change, so a stale update must count in whole; set it to constant."
            )

    def _check_faults(self) -> None:
        policy = self.on_client_failure
        if policy not in get_args(Policy):
            raise ConfigError(
                f"federation.on_client_failure must be one of {', '.join(get_args(Policy))}, "
                f"got {policy!r}.{did_you_mean(str(policy), get_args(Policy))}"
            )
        for name, value, least in (
            ("max_retries", self.max_retries, 0),
            ("min_clients", self.min_clients, 1),
        ):
            check_integer(f"federation.{name}", value, at_least=least)
        seconds = self.client_timeout
        if seconds is not None:
            name = "federation.client_timeout"
            check_number(name, seconds, above=0, unit="seconds", other="null for none")
        if seconds is not None and self.clients_per_kernel > 1:
            raise ConfigError(
                "federation.client_timeout needs federation.clients_per_kernel=1: there is not a "
                "clock for each of several clients that train at once."
            )
        if isinstance(self.cohort_size, int) and self._has_rounds:
            self.check_min_clients(self.cohort_size)

    @property
    def sized(self) -> bool:
        """Whether all cohorts have the same number of clients."""
        return self.sampler is None or self.sampler.sized

    @property
    def _has_rounds(self) -> bool:
        return self.schedule is None or isinstance(self.schedule, Synchronous)

    @property
    def stages(self) -> tuple[UplinkStage, ...]:
        """The stages between client and server: clipping for privacy, compression last."""
        privacy, compression = self.privacy, self.compression
        clip: list[UplinkStage] = []
        if privacy is not None:
            adaptive = privacy.adaptive is not None
            clip = [PrivateClip() if adaptive else ClipNorm(privacy.first_norm)]
        own = [stage for stage in self.uplink if not isinstance(stage, Compression)]
        last = [stage for stage in self.uplink if isinstance(stage, Compression)]
        if isinstance(self.aggregator, SecureSum):
            clip.append(FixedPoint(self.aggregator.bits))
        return (*own, *clip, *last, *([compression] if compression is not None else []))

    @property
    def optimizer_lifetime(self) -> OptimizerState:
        """How long the state of clients' optimizers lives."""
        return lifetime_of(self.optimizer_state, self.schedule)

    @cached_property
    def client_algorithm(self) -> Algorithm:
        """The algorithm, with the hook that ``optimizer_state`` adds to it."""
        return with_optimizer_state(
            self.algorithm,
            self.optimizer_lifetime,
            self.schedule,
            self.cohort_size,
            self.clients_per_kernel,
            self.stages,
        )

    @property
    def retries(self) -> int:
        """How often a client that fails is tried again."""
        return self.max_retries if self.on_client_failure == "retry" else 0

    def check_leave_out(self, clients: Sequence[int]) -> None:
        """Refuse to leave out a client that does not train, or all that do.

        Args:
            clients: Those that train.

        Raises:
            ConfigError: ``leave_out`` has such a client, or all.
        """
        for client in self.leave_out:
            if client not in clients:
                raise ConfigError(
                    f"federation.leave_out: client {client} does not train; the clients that do "
                    f"are {len(clients)}, from {clients[0]} to {clients[-1]}."
                )
        if len(set(self.leave_out)) == len(clients):
            raise ConfigError(
                "federation.leave_out: nobody is left to train; leave some client in the cohorts."
            )

    def check_min_clients(self, cohort: int, given_by: str = "federation.cohort_size") -> None:
        """Refuse a cohort of so many clients that could not make a round even if all succeeded.

        Args:
            cohort: How many updates are merged at once.
            given_by: The setting that says so.

        Raises:
            ConfigError: If it has fewer than ``min_clients``.
        """
        if self.min_clients > cohort:
            if given_by != "federation.cohort_size":
                raise ConfigError(
                    f"federation.min_clients={self.min_clients} can never be met: {given_by} gives "
                    f"{cohort} {'update' if cohort == 1 else 'updates'} a round; lower it."
                )
            raise ConfigError(
                f"federation.min_clients={self.min_clients} with a cohort of {cohort} "
                f"{'client' if cohort == 1 else 'clients'} can never be met; "
                "lower it or raise federation.cohort_size."
            )

    def cohort_count(self, population: int) -> int:
        """Return the number of clients a round in a population; of any size, the expected one.

        Raises:
            ConfigError: If there are not as many.
        """
        if self.cohort_size is None:
            assert self.sampler is not None, "cohort_size was checked"
            return max(1, round(self.sampler.expected(population)))
        return cohort_count(self.cohort_size, population)

    def cohort(
        self, key: Key, population: int, size: int, clients: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Return the clients of round ``key.round``, in the order in which they train.

        Args:
            key: The round's random stream.
            population: Number of clients.
            size: Number of clients to choose.
            clients: Those that may be chosen, in ascending order; ``None`` means all.

        Raises:
            ConfigError: If a sampler that chooses clients by their ids has chosen another one.
        """
        sampler = self.sampler or UniformSampler()
        return choose(sampler, key, population, size, clients)
