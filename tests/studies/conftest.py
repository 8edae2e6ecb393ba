"""Run folders as runs leave them, without running anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedlightning.reporting.client_records import ClientRecord, write_clients_csv


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """Write the folder of a run; return it."""

    def make(
        variant: str,
        seed: int = 0,
        after: Sequence[float] = (0.5, 0.75),
        *,
        before: Sequence[float] | None = None,
        held_out: Sequence[float] = (),
        algorithm: str | None = None,
        condition: str = "",
        partition: str = "same",
        cohorts: Sequence[int] = (11, 22),
        state: str = "done",
        in_study: bool = True,
        settings: dict[str, Any] | None = None,
        metrics: str = "round,train/loss,global/acc\n0,2.0,0.25\n1,1.0,0.5\n",
        clients: bool = True,
    ) -> Path:
        above = tmp_path / "runs" / variant / (condition or ".") / f"seed_{seed}"
        folder = above / "lightning_logs" / "version_0"
        folder.mkdir(parents=True)
        config = {
            "seed_everything": seed,
            "federation": {"algorithm": {"class_path": f"fedlightning.{algorithm or variant}"}},
            "trainer": {"max_epochs": 2, **(settings or {})},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "metrics.csv").write_text(metrics)
        lines = [f"{at},0.5,2,{crc}\n" for at, crc in enumerate(cohorts)]
        (folder / "rounds.csv").write_text("round,seconds,clients,cohort_crc32\n" + "".join(lines))
        (folder / "partition.json").write_text(json.dumps({"digest": f"{partition}-{seed}"}))
        (folder / "partition.csv").write_text(
            "client_id,num_train,num_val,num_test,class_0,class_1\n0,5,0,4,5,0\n1,5,0,4,2,3\n"
        )
        if clients:
            write_clients_csv(folder / "clients.csv", _records(after, before))
        if held_out:
            write_clients_csv(folder / "held_out_clients.csv", _records(held_out, None))
        if in_study:
            point = {"federation.cohort_size": condition} if condition else {}
            facts = {
                "variant": variant, "point": point, "seed": seed, "digest": "d", "state": state,
                "seconds": 7.0, "versions": {"torch": "2.9"},
            }  # fmt: skip
            (above / "study_run.json").write_text(json.dumps(facts))
        return folder

    return make


def _records(after: Sequence[float], before: Sequence[float] | None) -> list[ClientRecord]:
    pairs = zip(before or [value / 2 for value in after], after, strict=True)
    return [ClientRecord(at, 5, 4, old, new, 1.0, 0.5) for at, (old, new) in enumerate(pairs)]
