"""`Study`: several algorithms, settings and seeds on the same data, compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedlightning.cli.config.only_in_python import refuse_missing
from fedlightning.cli.config.recipes import find_config
from fedlightning.cli.terminal import quiet
from fedlightning.core.arguments import NamedArguments
from fedlightning.core.description import described
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.errors import ConfigError, DataError
from fedlightning.results import html
from fedlightning.results.frames import check_pandas, read_columns, read_frame
from fedlightning.results.run import Run
from fedlightning.storage.run_layout import METRICS
from fedlightning.studies.execution import STUDY_FILE, carry_out, report_on
from fedlightning.studies.plan import PlannedRun, plan
from fedlightning.studies.report.paper import paper_options
from fedlightning.studies.run_state import state_of
from fedlightning.studies.study import Study as StudyContent
from fedlightning.studies.study import read_study, study_of
from fedlightning.studies.validation import check_runs

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Study"]

_SUMMARY = "summary"
_SHOWN = ("variant", "condition", "group", "seeds", "clients")
_MEASURES = ("_before", "_after", "_after_std_seeds", "_after_worst_decile")


class Study(NamedArguments):
    """Several algorithms, settings and seeds on the same data: ``compare`` in Python.

    The folder, its files and the bits of its runs are those of ``python -m fedlightning compare``;
    each run is a process of its own. What is done stays done: a study that was stopped goes on
    where it was, in Python or on the command line. So base and variants must be things that a
    config can say: classes that can be imported, data that is read from files.

    A notebook shows the table of results.

    Args:
        base: What all runs share: a recipe's name, a config file, or a mapping with ``model``,
            ``data``, ``federation`` and ``trainer``, whose values may be objects.
        variants: What is compared: a list of algorithms, or a mapping from names to algorithms or
            to settings such as ``{"federation.local_epochs": 5}``.
        seeds: Several integers, also of NumPy, or a number n for 0..n-1.
        settings: Settings of all runs over the base, by their keys.
        grid: Further axes, by settings: lists of values.
        output: The folder of the study; by default ``studies/`` and the title.
        title: Its title; by default ``study``.
        workers: Number of runs at the same time.
        baseline: The variant that the others are tested against.

    Raises:
        ConfigError: The study cannot work; the message says why.

    Example:
        >>> from fedlightning import FedAvg, FedProx
        >>> study = Study("quickstart.yaml", [FedAvg(), FedProx(mu=0.1)], seeds=3,
        ...               settings={"trainer.max_epochs": 5})
        >>> study
        Study(study: 6 runs, 0 done, in studies/study)
    """

    def __init__(
        self,
        base: str | os.PathLike[str] | Mapping[str, Any],
        variants: Sequence[Any] | Mapping[str, Any],
        *,
        seeds: int | Iterable[int] = 1,
        settings: Mapping[str, Any] | None = None,
        grid: Mapping[str, Any] | None = None,
        output: str | os.PathLike[str] | None = None,
        title: str = "study",
        workers: int = 1,
        baseline: str | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "title": title,
            "output": None if output is None else os.fspath(output),
            "base": _base(base),
            "settings": described(dict(settings), whole=False) if settings else None,
            "seeds": seeds,
            "variants": _variants(variants),
            "grid": described(dict(grid), whole=False) if grid else None,
            "workers": workers,
            "baseline": baseline,
        }
        given = {key: value for key, value in given.items() if value is not None}
        refuse_missing({key: given[key] for key in ("base", "variants")}, "study")
        self._take(study_of(given, title, Path()))
        given["workers"] = self._content.workers
        if not isinstance(seeds, int):
            given["seeds"] = list(self._content.seeds)
        base_file = given["base"]
        if isinstance(base_file, str) and Path(base_file).is_file():
            given["base"] = os.path.relpath(base_file, self.folder)
        self._source = yaml.safe_dump(given, sort_keys=False, allow_unicode=True).encode()

    @classmethod
    def read(cls, path: str | os.PathLike[str], **changes: Any) -> Study:
        """Return the study of a study file, or of a study's folder.

        Args:
            path: The file, the name of one of the package, or a folder that a study has left.
            **changes: ``output``, ``workers``, ``seeds`` or ``baseline`` instead of the file's.

        Raises:
            ConfigError: The file is refused.
        """
        given = Path(path)
        file = given / STUDY_FILE if given.is_dir() else find_config(os.fspath(path))
        changes = {key: os.fspath(v) if key == "output" else v for key, v in changes.items()}
        if given.is_dir():
            changes.setdefault("output", os.fspath(given))
        study = cls.__new__(cls)
        study._take(read_study(Path(file), changes))
        study._source = Path(file).read_bytes()
        return study

    def _take(self, content: StudyContent) -> None:
        self._content = replace(content, output=Path(os.path.normpath(content.output)))
        self._planned = plan(self._content)

    # -- running ---------------------------------------------------------------------------------

    def run(self, *, rerun: bool = False, strict: bool = False) -> pd.DataFrame:
        """Run what is left of the study and write its report; return the table of results.

        Args:
            rerun: Whether runs whose settings have changed are repeated; the old ones move to
                ``replaced``.
            strict: Whether classes of other packages than this one, torch and Lightning are
                refused.

        Returns:
            ``frame()``.

        Raises:
            ConfigError: A run is refused, before the first one starts.
            EnvironmentFailure: pandas is not installed, or another process uses the folder.
            FederationError: A run failed; all others have been run.
            KeyboardInterrupt: It was interrupted; call ``run`` again to go on.
        """
        check_pandas()
        with (
            quiet(),
            forked_generators(Key(0, "evaluate")),
        ):  # building the objects seeds the generators
            check_runs(self._planned, strict)
        signal = carry_out(self._content, self._planned, self._source, rerun=rerun, strict=strict)
        if signal:
            raise KeyboardInterrupt
        return self.frame()

    def report(
        self,
        tables: Sequence[str] = (),
        figures: str | None = None,
        width: str | float = "column",
        spread: str = "sd",
    ) -> Path:
        """Write the report on the runs that are done; return its path.

        Args:
            tables: For a paper, in ``tables/``: ``latex``, ``markdown``, or both.
            figures: For a paper, in ``figures/``: ``pdf``, ``svg`` or ``png``.
            width: Their width: ``column`` (3.3 inches), ``page`` (6.9), or inches.
            spread: Behind the ± in tables: ``sd`` or ``ci``, over seeds.

        Raises:
            ConfigError: A value is not one of those that there are.
            DataError: No run is done.
        """
        given = {"tables": tables, "figures": figures, "width": width, "spread": spread}
        paper = paper_options({key: value for key, value in given.items() if value is not None})
        if not any(any(run.folder.rglob(METRICS)) for run in self._planned):
            raise DataError(f"{self.folder}: no run is there; call run().")
        report_on(self._content, self._planned, paper)
        return self.folder / "report.html"

    # -- results ---------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self._content.output

    @property
    def runs(self) -> list[Run]:
        """The runs that are done, ordered by seed first."""
        return [Run(run.folder) for run in self._done()]

    def frame(self, table: str = _SUMMARY) -> pd.DataFrame:
        """Return a table of the report.

        Args:
            table: ``summary``, one row per variant, condition and evaluation view; ``clients``, one
                row per client and run; ``curves``, one row per round and run; ``seed_tests``, one
                row per comparison of two variants over seeds; ``tests``, the same over clients.

        Raises:
            ConfigError: There is no such table, or no report yet.
            EnvironmentFailure: pandas is not installed.
        """
        check_pandas()
        if not (self.folder / f"{_SUMMARY}.csv").is_file():
            raise ConfigError(f"{self.folder}: no results yet; call run().")
        return read_frame(self.folder, table)

    def _done(self) -> list[PlannedRun]:
        return [run for run in self._planned if state_of(run).state == "done"]

    # -- how it is shown -------------------------------------------------------------------------

    def __repr__(self) -> str:
        done = f"{len(self._planned)} runs, {len(self._done())} done"
        return f"Study({self._content.name}: {done}, in {self.folder.as_posix()})"

    def _repr_html_(self) -> str:
        note = f"{len(self._done())} of {len(self._planned)} runs done"
        path = self.folder / f"{_SUMMARY}.csv"
        parts = [_results(read_columns(path))] if path.is_file() else []
        return html.block(self._content.name, parts, note)


def _results(columns: Mapping[str, list[Any]]) -> str:
    """Return the table of results, in HTML."""
    kept = [name for name in _SHOWN if any(value != "" for value in columns.get(name, ()))]
    measures = [each for each in columns if each.endswith(_MEASURES) or each.startswith("global_")]
    kept += [name for name in measures if not all(value != value for value in columns[name])]
    rows = zip(*(columns[name] for name in kept), strict=True)
    named = [name.replace("_", " ") for name in kept]
    return html.table(named, ([_cell(value) for value in row] for row in rows))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3f}"
    return str(value)


def _base(given: Any) -> Any:
    """Return the base as a study file has it."""
    if isinstance(given, (str, os.PathLike)):
        return os.fspath(given)
    if not isinstance(given, Mapping):
        raise ConfigError(
            "base must be a recipe, a config file, or a mapping with model, data, federation and "
            f"trainer, got {given!r}."
        )
    said = {key: described(value, whole=False) for key, value in given.items()}
    federation = said.get("federation")
    if isinstance(federation, dict) and "class_path" in federation:
        said["federation"] = federation["init_args"]
    return said


def _variants(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: described(value, whole=False) for name, value in given.items()}
    return [described(item, whole=False) for item in given]
