"""What a client sends is checked before it is merged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from fedlightning.core.state import first_non_finite, first_without_norm

__all__ = ["BadUpdate", "Cause", "check_tensors", "check_weight"]


Cause = Literal["exception", "non_finite", "bad_update", "bad_weight", "timeout"]
"""Why an update was not taken."""


class BadUpdate(Exception):
    """A client's work that came to an end, but not to an update that can be merged.

    Args:
        cause: Why.
        text: What is wrong with it.
    """

    def __init__(self, cause: Cause, text: str) -> None:
        super().__init__(text)
        self.cause: Cause = cause


def check_tensors(state: Mapping[str, Any], like: Mapping[str, Tensor], steps: int) -> None:
    """Refuse an update that differs from the global model in more than its values.

    Args:
        state: The update.
        like: The global model's tensors of the same part.
        steps: Optimizer steps that led to it, for the message.

    Raises:
        BadUpdate: If keys, shapes or dtypes differ, or a value is NaN, infinite, or so large that
            its square is.

    Example:
        >>> import torch
        >>> check_tensors({"w": torch.ones(3)}, {"w": torch.ones(2)}, steps=1)
        Traceback (most recent call last):
        fedlightning.federation.update_checks.BadUpdate: shapes differ: w of its update is (3,), ...
    """
    if missing := [key for key in like if key not in state]:
        raise BadUpdate("bad_update", f"its update lacks {_some(missing)}")
    if extra := [key for key in state if key not in like]:
        raise BadUpdate("bad_update", f"its update has {_some(extra)}, which is not shared")
    for key, model in like.items():
        value = state[key]
        if not isinstance(value, Tensor):
            raise BadUpdate(
                "bad_update", f"{key} of its update is not a tensor but a {type(value).__name__}"
            )
        for what, got, wanted in (
            ("shapes", tuple(value.shape), tuple(model.shape)),
            ("dtypes", value.dtype, model.dtype),
        ):
            if got != wanted:
                raise BadUpdate(
                    "bad_update",
                    f"{what} differ: {key} of its update is {got}, the global model's is {wanted}",
                )
    if (bad := first_without_norm(state)) is not None:
        what = bad if first_non_finite({bad: state[bad]}) else f"the norm of {bad}"
        raise BadUpdate(
            "non_finite",
            f"{what} of its update is non-finite after {steps} steps; lower the learning rate or "
            "set trainer.gradient_clip_val.",
        )


def check_weight(num_examples: int, weight: float) -> None:
    """Refuse a weight that would spoil a mean.

    Raises:
        BadUpdate: If a number is not finite or not > 0.
    """
    for name, value in (("number of examples", num_examples), ("weight", weight)):
        if not (value > 0 and math.isfinite(value)):
            raise BadUpdate("bad_weight", f"its {name} must be a finite number > 0, got {value}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
