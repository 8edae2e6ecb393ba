"""``python -m fedlightning influence``: a run replayed without one client after another."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedlightning.cli.terminal import print_note
from fedlightning.errors import ConfigError, FederationError, did_you_mean
from fedlightning.reporting.influence_table import InfluenceRecord, read_influence_csv
from fedlightning.storage.locks import study_lock
from fedlightning.storage.run_folders import newest_run
from fedlightning.storage.run_layout import INFLUENCE, client_names_in
from fedlightning.studies.leave_one_out import (
    WholeRun,
    final_test_metrics,
    find_whole_run,
    listed_clients,
    plan_without,
)
from fedlightning.studies.options import Options, read_words
from fedlightning.studies.plan import PlannedRun
from fedlightning.studies.progress import Progress
from fedlightning.studies.run_state import can_resume, changes, rounds_done, state_of
from fedlightning.studies.runner import run_all
from fedlightning.studies.validation import check_runs

__all__ = ["influence"]

_FLAGS = ("dry-run", "strict")
_VALUES = ("run", "clients", "workers", "metric")
_HELP = """usage: python -m fedlightning influence --run DIR [--clients 1,2,3] [--key=value ...]

  --run DIR          the folder of a finished run
  --clients 3,7-9    the clients to leave out, by id or name, one in each replay; by default
                     those of which the run has estimates (ClientInfluence)
  --workers N        replays at the same time; by default one for each core
  --metric NAME      the metric that ranks the clients; by default the loss on test data
  --dry-run          print what would run
  --strict           refuse classes of other packages

Each replay has the cohorts, batches and random numbers of the run, with the client struck from
every cohort; it is a run folder of its own, DIR/influence/without_N. Those that are there are not
made again, those that were killed are resumed. DIR/influence has leave_one_out.csv and .png."""


def influence(words: Sequence[str]) -> int:
    """Replay a run without some clients, and compare what that shows with the run's estimates.

    Args:
        words: The arguments after ``influence``.

    Returns:
        The exit code: 0 if all replays are done; 130 or 143 after a signal.

    Raises:
        ConfigError: An option is wrong, or there is no such run.
        DataError: The run has no metrics to compare.
        EnvironmentFailure: Another command uses the folder.
        FederationError: A replay failed; all others have been made.
    """
    if {"-h", "--help"} & set(words):
        print(_HELP)
        return 0
    given = read_words(words, "influence", _FLAGS, _VALUES)
    if given.settings:
        raise ConfigError(
            f"influence changes no settings: --{next(iter(given.settings))}; a replay has those of "
            "the run."
        )
    whole = find_whole_run(_folder(given))
    estimates = _estimates(whole)
    replays = plan_without(whole, _clients(given, whole, estimates))
    metric = _metric(given, whole)
    strict = "strict" in given.flags or os.environ.get("FEDLIGHTNING_STRICT", "0") not in ("", "0")
    check_runs(replays[:1], strict)
    _refuse_changed(replays)
    workers = _workers(given, len(replays))
    if "dry-run" in given.flags:
        print(f"{len(replays)} replays, {workers} at a time, in {whole.output}")
        for run in replays:
            print(f"  {run.variant}: {_next_step(run)}")
        return 0
    with study_lock(whole.output) as lock:
        left = [run for run in replays if state_of(run).state != "done"]
        before = f"; {len(replays) - len(left)} done before" if len(left) < len(replays) else ""
        print(f"{len(replays)} replays of {whole.folder}, {workers} at a time{before}", flush=True)
        rounds = sum(whole.rounds - rounds_done(run.folder) for run in left)
        progress = Progress(len(replays), len(replays) - len(left), rounds)
        ended = run_all(left, workers, progress, lock, ["--strict"] if strict else [])
        done = [run for run in replays if state_of(run).state == "done"]
        if done:
            print(f"\n{_compare(whole, done, estimates, metric)}", flush=True)
    if ended.signal:
        sys.stdout.flush()
        print_note(
            f"interrupted: {len(done)} of {len(replays)} replays are done; the same command "
            "resumes."
        )
        return 128 + ended.signal
    if ended.failed:
        raise FederationError(ended.failures(len(replays)))
    return 0


def _folder(given: Options) -> Path:
    folders = [*([str(given.values["run"])] if "run" in given.values else []), *given.positional]
    if len(folders) != 1:
        raise ConfigError(
            "influence expects one run folder: python -m fedlightning influence --run DIR "
            "[--clients 1,2,3]" + (f"; got {', '.join(folders)}" if folders else "")
        )
    if not Path(folders[0]).is_dir():
        raise ConfigError(f"--run {folders[0]}: no such folder.")
    return Path(folders[0])


def _estimates(run: WholeRun) -> dict[int, InfluenceRecord]:
    path = run.folder / INFLUENCE
    return {each.client_id: each for each in read_influence_csv(path)} if path.is_file() else {}


def _clients(
    given: Options, run: WholeRun, estimates: Mapping[int, InfluenceRecord]
) -> Sequence[int]:
    from fedlightning.personalization.on_demand import chosen_clients

    names = client_names_in(run.folder)
    chosen = chosen_clients(given.values.get("clients"), names, "--clients")
    if chosen is not None:
        known = listed_clients(run.folder)
        for client in chosen if known else ():
            if client not in known:
                raise ConfigError(
                    f"--clients: client {client} is not one of the run's {len(known)} clients, "
                    f"{min(known)} to {max(known)}."
                )
        return chosen
    if not estimates:
        raise ConfigError(
            f"{run.folder} has no {INFLUENCE}: name the clients to leave out, e.g. --clients 1,2,3."
        )
    return sorted(estimates)


def _metric(given: Options, run: WholeRun) -> str:
    from fedlightning.studies.influence_table import main_metric

    wanted = given.values.get("metric")
    if wanted is not None and wanted not in run.metrics:
        raise ConfigError(
            f"--metric={wanted} is not measured on test data after the last round of {run.folder}."
            f"{did_you_mean(str(wanted), run.metrics)} Known: {', '.join(run.metrics)}."
        )
    return main_metric(list(run.metrics), wanted)


def _workers(given: Options, replays: int) -> int:
    from fedlightning.core.validation import check_integer

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = given.values.get("workers")
    if wanted is None:
        return max(1, min(cores or 1, replays))
    return check_integer("--workers", wanted, at_least=1, at_most=1024)


def _refuse_changed(replays: Sequence[PlannedRun]) -> None:
    for run in replays:
        if found := changes(run, state_of(run)):
            raise ConfigError(
                f"{run.folder} replays the run with other settings ({'; '.join(found[:3])}); move "
                "it away to make it anew."
            )


def _next_step(run: PlannedRun) -> str:
    if state_of(run).state == "done":
        return "done"
    if can_resume(run.folder):
        return f"to be resumed after round {rounds_done(run.folder)}"
    return "to be run"


def _compare(
    whole: WholeRun,
    done: Sequence[PlannedRun],
    estimates: Mapping[int, InfluenceRecord],
    metric: str,
) -> str:
    """Write what the replays have shown; return it as text."""
    from fedlightning.studies.influence_table import (
        LeftOut,
        estimated_parameters,
        parameters_of,
        write_left_out,
    )

    present, guesses = parameters_of(whole.folder), estimated_parameters(whole.folder)
    records = []
    for run in done:
        client = int(run.folder.name.rpartition("_")[2])
        folder = newest_run(run.folder)
        assert folder is not None  # it is done
        _, metrics = final_test_metrics(folder)
        truth = {n: metrics[n] - value for n, value in whole.metrics.items() if n in metrics}
        without = parameters_of(folder)
        moved = {key: without[key] - value for key, value in present.items() if key in without}
        records.append(LeftOut.of(client, truth, estimates.get(client), moved, guesses.get(client)))
    text = write_left_out(whole.output, records, metric)
    return f"{text}\n{whole.output}"
