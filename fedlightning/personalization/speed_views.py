"""Slow and fast clients apart, where the schedule says how long their updates take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fedlightning.core.views import EvaluationView
from fedlightning.federation.jobs import Population
from fedlightning.federation.schedule import Schedule

__all__ = ["views_by_speed"]

_TIMES_THE_MEDIAN = 2.0
"""A client is slow whose updates take more than so many times as long as the median client's."""


def views_by_speed(
    schedule: Schedule, population: Population, views: Sequence[EvaluationView]
) -> list[EvaluationView]:
    """Return the views ``slow`` and ``fast`` of the main view's clients.

    A client is slow if its updates typically take more than twice as long as those of the median
    client. Without a clock, or where nobody is slow, there are no such views.

    Args:
        schedule: The schedule.
        population: The clients as the schedule knows them.
        views: The views that there are; one of these names is left as it is.

    Example:
        >>> from fedlightning.federation import Buffered
        >>> clients = Population(0, range(4), 4, lambda commit: (), num_examples=lambda c: 10)
        >>> main = [EvaluationView("", range(4))]
        >>> [(v.name, v.clients) for v in views_by_speed(Buffered(1, [1, 9, 1, 1]), clients, main)]
        [('slow', [1]), ('fast', [0, 2, 3])]
        >>> views_by_speed(Buffered(1, 2.0), clients, main)
        []
    """
    taken = {view.name for view in views}
    main = next((view for view in views if not view.name and not view.on_validation_data), None)
    if not schedule.timed or main is None or taken & {"slow", "fast"}:
        return []
    seconds = {client: schedule.slowness(population, client) or 0.0 for client in main.clients}
    limit = _TIMES_THE_MEDIAN * statistics.median(seconds.values())
    slow = [client for client, typical in seconds.items() if typical > limit]
    if not slow:
        return []
    fast = [client for client, typical in seconds.items() if typical <= limit]
    return [EvaluationView("slow", slow, main.split), EvaluationView("fast", fast, main.split)]
