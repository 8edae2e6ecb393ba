"""How much of a very large population is evaluated and listed."""

from __future__ import annotations

from collections.abc import Sequence

from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.errors import ConfigError
from fedlightning.core.seeding import Key

__all__ = ["LARGE", "SAMPLE", "evaluated_clients", "listed_clients"]

LARGE = 10_000
"""The most clients that a run evaluates and lists one by one unless it is told otherwise."""

SAMPLE = 1_000
"""How many clients stand for all where there are more."""


def listed_clients(num_clients: int) -> int:
    """Return how many clients, from client 0 on, a run's files list.

    Example:
        >>> listed_clients(10_000), listed_clients(1_000_000)
        (10000, 1000)
    """
    return num_clients if num_clients <= LARGE else SAMPLE


def evaluated_clients(
    num_clients: int, wanted: int | None, seed: int, *, held_out: bool = False
) -> Sequence[int]:
    """Return the clients to evaluate, in ascending order: all, or a sample that is always the same.

    A sample, and not the first ones, because client ids often follow from the data.

    Args:
        num_clients: Number of clients.
        wanted: How many to evaluate. None means all, but of more than ``LARGE`` a sample of
            ``SAMPLE``, with a warning.
        seed: Seed of the sample.
        held_out: Whether these are the clients held out of training, of which there may be fewer
            than wanted.

    Raises:
        ConfigError: There are not as many.

    Example:
        >>> evaluated_clients(4, None, seed=0), evaluated_clients(1_000_000, 3, seed=0)
        (range(0, 4), [283523, 360806, 852727])
    """
    if wanted is None and num_clients > LARGE:
        rank_zero_warn(
            f"{num_clients:,} {'held-out ' if held_out else ''}clients: evaluation and "
            f"personalization take a random sample of {SAMPLE:,} of them, the same each time. "
            f"data.eval_clients sets another number, {num_clients} for all."
        )
        wanted = SAMPLE
    if wanted is None or wanted == num_clients or (held_out and wanted > num_clients):
        return range(num_clients)
    if wanted > num_clients:
        raise ConfigError(f"eval_clients={wanted} is more than there are clients: {num_clients}")
    # streams of their own: of "partition", round 3 is apart from the division (0) and from the
    # held-out examples (1); of "held_out", round 1 is apart from who is held out (0)
    rng = (Key(seed, "held_out", round=1) if held_out else Key(seed, "partition", round=3)).numpy()
    chosen: list[int] = sorted(rng.choice(num_clients, wanted, replace=False).tolist())
    return chosen
