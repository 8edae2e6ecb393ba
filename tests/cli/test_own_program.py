"""`FederatedCLI` for a program of one's own, and the parts of the command line by themselves."""

import pytest
import torch
import yaml

from fedlightning.cli import FederatedCLI
from fedlightning.cli.config.command import read_command
from fedlightning.cli.config.references import mark_references
from fedlightning.cli.diagnostics.explain import explain
from fedlightning.cli.diagnostics.parser_errors import read_complaints
from fedlightning.cli.run_watch import RunMonitor
from fedlightning.datamodules import Digits
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.models import MLP

# LightningCLI's own use of jsonargparse
pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)

OPTIONS = ["--data.num_clients=5", "--data.batch_size=100", "--trainer.max_epochs=1"]
SILENT = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def test_a_program_with_its_own_model_and_data(tmp_path):
    cli = FederatedCLI(MLP, Digits, args=["fit", "--model.hidden=[4]", *OPTIONS, *SILENT])
    assert cli.trainer.current_epoch == 1
    config = yaml.safe_load((tmp_path / "lightning_logs" / "version_0" / "config.yaml").read_text())
    assert config["model"]["hidden"] == [4]
    assert config["data"]["num_clients"] == 5


def test_without_a_command_everything_is_built_and_nothing_run(tmp_path):
    cli = FederatedCLI(MLP, Digits, args=OPTIONS, run=False)
    assert (cli.datamodule.num_clients, cli.trainer.max_epochs) == (5, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_program_raises_what_the_command_line_prints():
    with pytest.raises(ConfigError, match=r"model\.lr must be a finite number > 0, got -1"):
        FederatedCLI(MLP, Digits, args=["fit", "--model.lr=-1", *OPTIONS])


def test_a_checkpoints_hyperparameters_override_nothing(tmp_path):
    arguments = ["fit", "--model.hidden=[4]", *OPTIONS, *SILENT]
    FederatedCLI(MLP, Digits, args=arguments)
    again = [*arguments, "--trainer.max_epochs=2", "--ckpt_path=last", "--model.lr=0.5"]
    with pytest.raises(CheckpointError, match=r"model.lr: 0.1 -> 0.5"):
        FederatedCLI(MLP, Digits, args=again)
    again[0] = "test"
    assert FederatedCLI(MLP, Digits, args=again).model.lr == 0.5


def test_configs_are_found_and_repetitions_noticed():
    command = read_command(["fit", "-c", "quickstart", "--a=1", "--b+=1", "--b+=2", "--a", "2"])
    assert command.name == "fit"
    assert command.options[0] == "--config"
    assert command.options[1].endswith("quickstart.yaml")
    assert command.warnings == ("a given twice; the last one counts",)


def test_references_of_other_kinds_and_escaped_ones_stay():
    for text in ("${oc.env:HOME}", "${.near}", "${..far.away}", r"\${data.x}", "$data", "${}"):
        assert mark_references(text) == text
    assert mark_references("a-${ data.x }-b") == "a-${setting:data.x}-b"
    assert mark_references("${trainer.callbacks[0].lr}") == "${setting:trainer.callbacks.0.lr}"
    assert mark_references(["${data.x}", "it's", None, True]) == (
        "${same:[${setting:data.x},'it\\'s',null,true]}"
    )


def test_a_message_of_a_kind_not_seen_before_becomes_one_line():
    assert explain("Something\n  new", []) == "Something new"
    message = 'Parser key "data":\n  Something new\n  Given value: 3'
    assert explain(message, []) == "data: Something new (got 3)"


def test_the_settings_of_the_innermost_class_are_meant():
    message = """Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'FederatedDataModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'a.Digits':
        Parser key "partition":
          Problem with given class_path 'b.Shards':
            Parser key "per_client":
              Expected a <class 'int'>. Got value: x
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'a.Digits'}"""
    inner, outer = read_complaints(message)
    assert (inner.key, inner.owner, inner.value) == ("data.partition.per_client", "b.Shards", "x")
    assert (outer.key, outer.owner) == ("data", None)
    assert explain(message, []) == "data.partition.per_client must be an integer, got 'x'."


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_an_earlier_runs_folder_is_never_removed(tmp_path):
    keep = ["--trainer.logger=RoundCSVLogger", "--trainer.logger.save_dir=logs"]
    keep += ["--trainer.logger.name=mine", "--trainer.logger.version=7"]
    arguments = ["fit", "--model.hidden=[4]", *OPTIONS, *SILENT, *keep]
    FederatedCLI(MLP, Digits, args=arguments)
    before = sorted(path.name for path in (tmp_path / "logs" / "mine" / "version_7").iterdir())
    assert "checkpoints" in before
    watch = RunMonitor()
    with pytest.raises(ConfigError, match="head='fc' matches no parameter"):
        FederatedCLI(MLP, Digits, watch=watch, args=[*arguments, "--model.head=fc"])
    watch.remove_empty_run()
    after = sorted(path.name for path in (tmp_path / "logs" / "mine" / "version_7").iterdir())
    assert set(before) <= set(after)


def test_a_half_made_folder_is_removed_with_the_folders_made_for_it(tmp_path):
    watch = RunMonitor()
    root = tmp_path / "a" / "b"
    options = [*OPTIONS, *SILENT, f"--trainer.default_root_dir={root}", "--model.head=fc"]
    with pytest.raises(ConfigError):
        FederatedCLI(MLP, Digits, watch=watch, args=["fit", *options])
    assert (root / "lightning_logs" / "version_0").exists()
    watch.remove_empty_run()
    assert not (tmp_path / "a").exists()


def test_the_seed_decides_the_weights_of_the_model():
    options = ["fit", *OPTIONS, *SILENT]
    first, same, other = (
        FederatedCLI(MLP, Digits, args=[*options, f"--seed_everything={seed}"]).model.head.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
