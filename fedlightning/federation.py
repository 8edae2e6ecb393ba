"""The settings that make a training federated."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedlightning.algorithms import Algorithm, FedBABU
from fedlightning.errors import ConfigError
from fedlightning.sampling import ClientSampler, UniformSampler, check_cohort_size, cohort_count
from fedlightning.seeding import Key

__all__ = ["Federation"]


@dataclass(frozen=True)
class Federation:
    """How clients learn together.

    Args:
        algorithm: What is trained, what is shared, how it is merged.
        cohort_size: Clients a round: an int is a number of clients, a float in (0, 1] a share of
            all.
        local_epochs: Passes over its own data that a client makes each time it is chosen.
        head: Key prefix or prefixes of the head. Needed for a plain LightningModule without an
            attribute ``head``; overrides a FederatedModule's own.
        sampler: How the cohort is chosen; ``None`` means uniformly (:class:`UniformSampler`).
        num_threads: CPU threads that torch uses in this process; ``None`` leaves torch's own
            choice. One is the fastest for small models and on a busy machine, and results do not
            depend on the number of cores.
        channels_last: Whether 4-D weights lie in memory with channels last; ``None`` means where
            that makes convolutions faster: on CPUs, and on GPUs in half precision. Kernels differ,
            so the last bits do: replaying somebody else's run needs a definite choice.
        clients_per_kernel: How many clients are trained at once, as one network with grouped
            operations (see :mod:`fedlightning.grouped`): several times as fast where the network
            and its batches are so small that calls cost more than arithmetic. Refused where
            anything but a plain network, cross-entropy and optimizer takes part. Results differ in
            the last bits, also from one number to another.
        personal_memory_mb: How many megabytes of what clients keep (FedPer's heads, say) may lie in
            memory; more than that goes to files in the run folder, under ``personal``.
        seed: Seed of cohorts, data order and dropout; ``None`` means ``seed_everything``'s, else 0.

    Raises:
        ConfigError: If a value is out of its range.

    Example:
        >>> Federation(cohort_size=10, local_epochs=4).cohort_count(population=100)
        10
    """

    algorithm: Algorithm = field(default_factory=FedBABU)
    cohort_size: int | float = 0.1
    local_epochs: int = 1
    head: str | list[str] | None = None
    sampler: ClientSampler | None = None
    num_threads: int | None = 1
    channels_last: bool | None = None
    clients_per_kernel: int = 1
    personal_memory_mb: float = 256.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.algorithm, Algorithm):
            raise ConfigError(
                "federation.algorithm must be an Algorithm such as FedBABU(), "
                f"got {self.algorithm!r}."
            )
        for name in ("local_epochs", "clients_per_kernel"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"federation.{name} must be an integer >= 1, got {value}.")
        if self.sampler is not None and not isinstance(self.sampler, ClientSampler):
            raise ConfigError(f"federation.sampler must be a ClientSampler, got {self.sampler!r}.")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise ConfigError(f"federation.seed must be within 0..4294967295, got {self.seed}.")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"federation.num_threads must be >= 1, got {self.num_threads}.")
        if not self.personal_memory_mb >= 0:
            raise ConfigError(
                f"federation.personal_memory_mb must be >= 0, got {self.personal_memory_mb}."
            )
        check_cohort_size(self.cohort_size)

    def cohort_count(self, population: int) -> int:
        """Return the number of clients a round in a population.

        Raises:
            ConfigError: If there are not as many.
        """
        return cohort_count(self.cohort_size, population)

    def cohort(self, key: Key, population: int, size: int) -> tuple[int, ...]:
        """Return the clients of round ``key.round``, in the order in which they train."""
        return (self.sampler or UniformSampler()).cohort(key, population, size)
