"""The metric that counts, and which of two values of it is better."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from fedlightning.core.metrics import canonical_name, on_validation_data, without_view
from fedlightning.core.statistics import Spread
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["MainMetric", "MetricMode"]

MetricMode = str
"""``max`` if more is better, ``min`` if less is."""

_LESS_IS_BETTER = re.compile(
    r"(^|[_/.-])(\w*loss|\w*error|err|mae|mse|rmse|mape|smape|wape|medae|msle|rmsle|perplexity|ppl|"
    r"nll|neg(ative)?_log_likelihood|\w*entropy|\w*divergence|bpc|bpb|brier|ece|eer|wer|cer|fpr|fnr|"
    r"distance|hausdorff|hd95|fid|deviance)($|[_/.-])",
    re.IGNORECASE,
)
_SUFFIX = re.compile(r"(acc_class_.*|.*_(weighted|undefined|std|min|p10|p90|worst_decile|jain))$")

_MOST_DECIMALS = 300  # ten to a higher power is no float


@dataclass(frozen=True)
class MainMetric:
    """The metric by which clients, rounds and runs are compared.

    Args:
        name: Its short name: ``acc``, ``mae``, ``f1``.
        mode: ``max`` if more is better, ``min`` if less is.

    Example:
        >>> MainMetric.chosen(["loss", "mae"]), MainMetric().text(0.7512)
        (MainMetric(name='mae', mode='min'), '75.1 %')
        >>> MainMetric("f1").column(["val/f1", "test/f1"]), MainMetric("mae", "min").text(12.3456)
        ('test/f1', '12.35')
    """

    name: str = "acc"
    mode: MetricMode = "max"

    @classmethod
    def chosen(
        cls, measured: Iterable[str], given: str | None = None, mode: MetricMode | None = None
    ) -> MainMetric:
        """Return the metric that is given, or else the first that is measured.

        An accuracy comes before all others, and the loss after them.

        Args:
            measured: What is measured on test data, as it is logged or by short names.
            given: ``federation.main_metric``.
            mode: ``federation.main_metric_mode``; ``None`` follows from the name.

        Raises:
            ConfigError: What is given is not measured, although something is.
        """
        names = list(dict.fromkeys(canonical_name(name) for name in measured))
        names = [name for name in names if not _SUFFIX.fullmatch(name)]
        if given is not None:
            name = canonical_name(given)
            if names and name not in names:
                raise ConfigError(
                    f"federation.main_metric={given!r} is not measured on test data."
                    f"{did_you_mean(name, names)} Measured: {', '.join(names)}."
                )
        else:
            others = [name for name in names if name != "loss"]
            name = "acc" if "acc" in names or not names else next(iter(others), "loss")
        less = mode == "min" if mode is not None else bool(_LESS_IS_BETTER.search(name))
        return cls(name, "min" if less else "max")

    @property
    def title(self) -> str:
        """What texts and figures call it."""
        return "accuracy" if self.name == "acc" else self.name

    @property
    def is_share(self) -> bool:
        """Whether values are shown in percent."""
        return self.name == "acc"

    @property
    def scale(self) -> float:
        """The factor of what is shown."""
        return 100.0 if self.is_share else 1.0

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is."""
        return -1 if self.mode == "min" else 1

    @property
    def unit(self) -> str:
        """What stands behind a shown number."""
        return " %" if self.is_share else ""

    def text(self, value: float) -> str:
        """Return a value as it is shown."""
        return f"{100 * value:.1f} %" if self.is_share else f"{value:.4g}"

    def decimals(self, values: Iterable[float], digits: int) -> int:
        """Return to how many decimals values are compared: what is beyond them is rounding.

        Args:
            values: The values; an accuracy is on a scale of 1 whatever they are, another metric on
                that of their median size.
            digits: How many digits of the scale count.

        Example:
            >>> MainMetric().decimals([0.01], 6), MainMetric("f1").decimals([0.5, 0.75], 6)
            (6, 6)
            >>> MainMetric("mse").decimals([3e-8, 0.0], 6), MainMetric("mse").decimals([4e7], 6)
            (13, -2)
        """
        sizes = [abs(value) for value in values if value and math.isfinite(value)]
        if self.is_share or not sizes:
            return digits
        return min(digits - math.ceil(math.log10(median(sizes))), _MOST_DECIMALS)

    def spread(self, values: Iterable[float]) -> Spread:
        """Return the spread over clients, whose worst tenth is the one with the worst values."""
        spread = Spread.of(given := list(values))
        if self.mode == "max" or not spread.count:
            return spread
        return replace(spread, worst_decile=-Spread.of(-value for value in given).worst_decile)

    def best(self, values: Sequence[float]) -> float:
        """Return the best of some values; nan of none."""
        known = [value for value in values if not math.isnan(value)]
        return (max if self.mode == "max" else min)(known, default=math.nan)

    def value_in(self, metrics: Mapping[str, float]) -> float | None:
        """Return the metric's value among logged ones on test data; ``None`` if it is not there."""
        name = self.column(metrics)
        return None if name is None else metrics[name]

    def column(self, logged: Iterable[str], view: str = "") -> str | None:
        """Return under which name the global model's value on test data is logged.

        Args:
            logged: All names.
            view: The evaluation view.
        """
        prefix = f"{view}/" if view else ""
        for name in logged:
            short = name.removeprefix(prefix)
            in_view = name.startswith(prefix) and (view or without_view(name) == name)
            of_test = not short.startswith(("val/", "val_", "train/", "personalized/", "initial/"))
            if in_view and of_test and canonical_name(short) == self.name:
                return name
        return None

    def columns(self, logged: Iterable[str]) -> list[str]:
        """Return all names under which the main view's values are logged.

        Example:
            >>> MainMetric("f1").columns(["val/f1", "ood/test/f1", "personalized/f1", "train/loss"])
            ['val/f1', 'personalized/f1']
        """
        found = []
        for name in logged:
            short = name.removeprefix("personalized/")
            own = without_view(name) == name and not on_validation_data(name)
            if own and not name.startswith("train") and canonical_name(short) == self.name:
                found.append(name)
        return found
