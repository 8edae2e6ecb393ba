"""The address of :mod:`fedlightning.federation.uplink` in releases before 0.2."""

from fedlightning.federation.uplink import *  # noqa: F403
