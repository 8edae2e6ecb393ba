"""The report says what each run promises, and what no epsilon covers."""

from __future__ import annotations

import pytest

from fedlightning.studies.report.privacy import is_private, privacy_parts
from fedlightning.studies.run_reader import read_run
from tests.privacy.test_private_runs import fitted, private
from tests.toys import data, net, trainer

pytest.importorskip("dp_accounting", reason="needs the extra dp")

CONFIG = "seed_everything: {seed}\nfederation: {{algorithm: FedBABU}}\n"


def test_each_run_has_its_epsilon_or_none(tmp_path):
    fitted(folder=tmp_path / "private")
    fitted(folder=tmp_path / "quiet", privacy={"noise_multiplier": 0.0})
    trainer(private().federation.algorithm, 1, 2, tmp_path / "open").fit(net(), datamodule=data())
    runs = []
    for seed, name in enumerate(("private", "quiet", "open")):
        (folder,) = (tmp_path / name).rglob("version_0")
        (folder / "config.yaml").write_text(CONFIG.format(seed=seed))
        runs.append(read_run(folder))
    assert is_private(runs)
    assert not is_private(runs[2:])
    text = "\n".join(privacy_parts(runs))
    epsilon = max(runs[0].metrics["privacy/epsilon"])
    assert f"<td>{epsilon:.4g}</td>" in text
    assert "none (no noise)" in text
    assert "none promised" in text
    assert "add or remove one client" in text
    assert "not covered: metrics, losses" in text
