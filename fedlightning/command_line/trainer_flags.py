"""Flags of Lightning's Trainer that are no settings of a federated run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from fedlightning.errors import ConfigError
from fedlightning.engine.checks.trainer_flags import MEANINGLESS, refuse_meaningless

__all__ = ["HIDDEN_FLAGS", "hidden_flag"]

HIDDEN_FLAGS = ("federation", "use_distributed_sampler", "model_registry", *MEANINGLESS)
"""Without federated meaning, of no use here, or set by the trainer itself."""


def hidden_flag(name: str) -> Callable[[Any], Any]:
    """Return the type of a flag that may be given, as in Lightning's configs, but not changed."""

    def check(value: Any) -> Any:
        if name == "federation":
            raise ConfigError(
                "trainer.federation is no setting: federation stands at the top, as in "
                "federation.algorithm."
            )
        parsed = yaml.safe_load(value) if isinstance(value, str) else value
        refuse_meaningless({name: parsed})
        return parsed

    return check
