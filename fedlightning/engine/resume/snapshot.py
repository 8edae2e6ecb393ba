"""What a checkpoint holds of a federated run, beside the global model and Lightning's own state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlightning.core.state import State
from fedlightning.engine.resume.run_settings import Settings
from fedlightning.federation.jobs import ScheduleState

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """A run between two commits.

    Args:
        clients: What clients keep (see :class:`~fedlightning.storage.client_store.ClientStore`).
        server: What the server remembers.
        versions: Older models that updates under way have started from, by version.
        schedule: The schedule's state.
        settings: What a resumed run must share.
    """

    clients: dict[str, Any]
    server: State
    settings: Settings
    versions: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    schedule: ScheduleState | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return it as primitives and tensors."""
        state: dict[str, Any] = {
            "personal": self.clients,
            "server": self.server,
            "settings": self.settings,
        }
        if self.schedule is not None:
            state["schedule"] = self.schedule.state_dict()
            state["versions"] = {version: dict(older) for version, older in self.versions.items()}
        return state

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Snapshot:
        """Return what :meth:`state_dict` has written, in this release or an earlier one."""
        schedule = state.get("schedule")
        return cls(
            state["personal"],
            state.get("server", {}),
            state["settings"],
            state.get("versions", {}),
            None if schedule is None else ScheduleState.from_dict(schedule),
        )
