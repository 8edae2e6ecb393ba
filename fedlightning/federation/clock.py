"""What the simulated clock says of a commit, as metrics."""

from __future__ import annotations

from collections.abc import Sequence

from fedlightning.core.metrics import LogFlags, Metrics
from fedlightning.federation.jobs import Job, ScheduleState

__all__ = ["clock_metrics"]


def clock_metrics(jobs: Sequence[Job], after: ScheduleState) -> Metrics:
    """Return a commit's time, work and staleness, and how many updates are in no commit.

    Args:
        jobs: Its client updates.
        after: The schedule's state after it.

    Returns:
        ``time/simulated`` of the commit and ``time/work``, the sum over its clients, in simulated
        seconds; ``staleness/mean`` and ``staleness/max`` in commits; ``schedule/REASON`` counts.

    Example:
        >>> jobs = [Job(0, 4, 0, time=9.0, start=7.0), Job(1, 2, 1, time=9.0, start=3.0)]
        >>> metrics = clock_metrics(jobs, ScheduleState(commit=5, time=9.0, counts={"lost": 1}))
        >>> for name, (value, _) in metrics.items():
        ...     print(name, value)
        time/simulated 9.0
        time/work 8.0
        staleness/mean 1.0
        staleness/max 2.0
        schedule/lost 1.0
    """
    values = {"time/simulated": after.time, "time/work": sum(job.time - job.start for job in jobs)}
    stale = [after.commit - 1 - job.version for job in jobs]
    if stale:
        values |= {"staleness/mean": sum(stale) / len(stale), "staleness/max": float(max(stale))}
    values |= {f"schedule/{name}": float(count) for name, count in after.counts.items()}
    return {name: (value, LogFlags()) for name, value in values.items()}
