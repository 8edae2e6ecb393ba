"""The state of a run of a study, as its folder records it."""

from __future__ import annotations

import json
import platform
import re
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from fedlightning.core.versions import package_versions
from fedlightning.errors import ConfigError, FedLightningError
from fedlightning.storage.files import os_errors_as_failures, write_atomically
from fedlightning.storage.run_folders import newest_run
from fedlightning.storage.run_layout import (
    CHECKPOINTS,
    CONFIG,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    ROUNDS,
)
from fedlightning.studies.plan import RUNS, PlannedRun, changed_settings
from fedlightning.studies.study import load_yaml
from fedlightning.studies.validation import config_text

__all__ = [
    "LOG",
    "RECORD",
    "RunState",
    "State",
    "archive",
    "begin",
    "is_archive",
    "read_state",
    "rounds_done",
    "state_above",
]

RECORD = "study_run.json"
LOG = "log.txt"
_REPLACED = "replaced"

State = Literal["new", "running", "interrupted", "failed", "done"]


@dataclass(frozen=True)
class RunState:
    """The content of ``study_run.json`` in a run's folder.

    Args:
        variant: Name of the variant.
        point: The name of its grid point on each axis.
        seed: ``seed_everything``.
        digest: Digest of the settings that results depend on.
        state: Its progress; ``running`` if its end was not recorded.
        exit_code: Exit code of the last attempt.
        seconds: Duration of all attempts.
        attempts: Number of attempts.
        error: Error of the last attempt.
        versions: Versions of the packages that it ran with.
    """

    variant: str
    point: dict[str, str]
    seed: int
    digest: str
    state: State = "new"
    exit_code: int | None = None
    seconds: float = 0.0
    attempts: int = 0
    error: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the state atomically."""
        text = json.dumps({"format": 1, **asdict(self)}, indent=1, ensure_ascii=False)
        write_atomically(folder / RECORD, text.encode() + b"\n")

    def ended(self, exit_code: int, state: State, seconds: float, error: str) -> RunState:
        """Return the state after an attempt."""
        total = round(self.seconds + seconds, 2)
        return replace(self, exit_code=exit_code, state=state, seconds=total, error=error)


def read_state(folder: Path) -> RunState | None:
    """Return the state of the run in a folder, ``None`` if it has none."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        names = RunState.__dataclass_fields__
        return RunState(**{name: value for name, value in content.items() if name in names})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def state_above(folder: Path) -> RunState | None:
    """Return the state of the study's run whose files are in a folder, ``None`` if there is none.

    Args:
        folder: The run folder itself, which lies up to two folders below that of the study's run.
    """
    places = (folder, *list(folder.parents)[:2])
    return next((known for above in places if (known := read_state(above))), None)


def state_of(run: PlannedRun) -> RunState:
    """Return the state of a planned run, or that of a new one."""
    known = read_state(run.folder)
    return known or RunState(run.variant, dict(run.point), run.seed, run.digest)


def changes(run: PlannedRun, state: RunState) -> list[str]:
    """Return the settings of a planned run that differ from those in its folder."""
    if state.digest == run.digest:
        return []
    try:
        before = load_yaml(run.folder / CONFIG)
    except FedLightningError:
        before = {}
    return changed_settings(before, run.config) or ["the settings' digest"]


def begin(run: PlannedRun, state: RunState) -> tuple[RunState, list[str]]:
    """Write config and state of a run that is about to start.

    Returns:
        The state, and the words of its command line.
    """
    with os_errors_as_failures("create", run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    resumes = can_resume(run.folder)
    if not resumes:  # leftovers of attempts that saved no round
        for version in run.folder.glob("*/version_*"):
            shutil.rmtree(version, ignore_errors=True)
    write_atomically(run.folder / CONFIG, config_text(run).encode())
    begun = replace(
        state,
        digest=run.digest,
        state="running",
        exit_code=None,
        error="",
        attempts=state.attempts + 1,
        versions={
            **package_versions(),
            "machine": f"{platform.system()} {platform.machine()}",
        },
    )
    begun.write(run.folder)
    words = ["fit", "--config", str(run.folder / CONFIG)]
    words += ["--trainer.default_root_dir", str(run.folder)]
    return begun, words + (["--ckpt_path", "last"] if resumes else [])


def can_resume(folder: Path) -> bool:
    """Whether a run has left a checkpoint."""
    return any(
        path.is_file()
        for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)
        for path in folder.glob(f"*/*/{CHECKPOINTS}/{name}")
    )


def rounds_done(folder: Path) -> int:
    """Return the number of finished rounds of a run, from the last whole line of its table."""
    run = newest_run(folder)
    if run is None:
        return 0
    try:
        with (run / ROUNDS).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 400))
            lines = file.read().split(b"\n")[:-1]  # the last one may be torn
        return int(lines[-1].split(b",")[0]) + 1
    except (OSError, ValueError, IndexError):
        return 0


def archive(run: PlannedRun, output: Path) -> Path:
    """Move a run's folder away, to make room for another run; return its new place."""
    if not run.folder.resolve().is_relative_to(output.resolve()):
        raise ConfigError(f"{run.folder} is not in the study's folder {output}.")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = output / _REPLACED / stamp / run.folder.relative_to(output / RUNS)
    with os_errors_as_failures("move", run.folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        run.folder.rename(target)
    return target


def is_archive(folder: Path) -> bool:
    """Whether runs that :func:`archive` has moved away are in a folder.

    Example:
        >>> study = getfixture("tmp_path")
        >>> (study / "runs").mkdir()
        >>> [is_archive(study / "replaced" / name) for name in ("20261130-091500", "runs")]
        [True, False]
    """
    above = folder.parent
    stamped = above.name == _REPLACED and re.fullmatch(r"\d{8}-\d{6}", folder.name) is not None
    return stamped and (above.parent / RUNS).is_dir()
