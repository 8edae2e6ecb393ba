"""A run is found by its number, beside what was made of its model."""

import pytest

from fedlightning.errors import ConfigError
from fedlightning.results.run import Run
from fedlightning.studies.leave_one_out import find_whole_run
from fedlightning.studies.run_reader import final_metrics
from fedlightning.studies.run_state import rounds_done
from fedlightning.studies.tuning.validation_values import read_values


@pytest.fixture
def several(make_run):
    """A study's run: two attempts, and what ``personalize`` and ``test`` have left beside them."""
    header = "round,train/loss,global/acc,val/acc\n"
    first = make_run("FedAvg", metrics=f"{header}0,2.0,0.25,0.2\n", cohorts=(1,))
    first = first.rename(first.with_name("version_9"))
    second = first.with_name("version_10")
    second.mkdir()
    for name in ("config.yaml", "rounds.csv"):
        (second / name).write_text((first / name).read_text())
    (second / "rounds.csv").write_text("round,seconds,clients,cohort_crc32\n0,1,2,3\n1,1,2,3\n")
    (second / "metrics.csv").write_text(f"{header}0,2.0,0.25,0.2\n1,1.0,0.5,0.4\n")
    for name, metrics in (
        ("version_11", "initial/acc,personalized/acc"),
        ("version_12", "global/acc,val/acc"),
    ):
        left = first.with_name(name)
        left.mkdir()
        (left / "config.yaml").write_text((first / "config.yaml").read_text())
        (left / "metrics.csv").write_text(f"round,{metrics}\n0,0.125,0.125\n")
    return first.parents[1]


def test_of_several_folders_the_newest_in_which_rounds_were_trained_is_the_run(several):
    assert rounds_done(several) == 2
    assert final_metrics(several) == [("global/acc", 0.5)]
    assert read_values(several, personal=False).by_round == ((1, 0.2), (2, 0.4))


def test_what_was_made_of_a_run_is_none(several):
    with pytest.raises(ConfigError, match="2 runs are there"):
        Run(several)
    for name in ("config.yaml", "metrics.csv", "rounds.csv"):
        (several / "lightning_logs" / "version_9" / name).unlink()
    assert Run(several).folder.name == "version_10"
    assert find_whole_run(several).folder.name == "version_10"
