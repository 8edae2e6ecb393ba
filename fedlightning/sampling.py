"""The address of :mod:`fedlightning.federation.sampling` in releases before 0.2."""

from fedlightning.federation.sampling import *  # noqa: F403
