"""Runs from the command line: what they leave, and how they go on."""

import csv

import pytest
import torch
import yaml

from fedlightning.datamodules import Digits, Shards
from fedlightning.models import MLP


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_config_metrics_and_checkpoint_and_the_config_runs_again(run, version):
    ended = run("B", "--data.num_clients=10", "--federation.cohort_size=${data.num_clients}")
    assert (ended.code, ended.err) == (0, "")
    assert "FedBABU" in ended.out
    config = yaml.safe_load((version / "config.yaml").read_text())
    assert config["federation"]["cohort_size"] == 10
    assert (version / "checkpoints" / "last.ckpt").exists()
    assert run("fit", "--config", str(version / "config.yaml")).code == 0
    again = version.parent / "version_1"
    assert (again / "metrics.csv").read_bytes() == (version / "metrics.csv").read_bytes()
    assert (again / "config.yaml").read_text() == (version / "config.yaml").read_text()


def test_classes_from_the_current_folder_go_by_their_import_path(run, plugin):
    ended = run("B", "--trainer.callbacks+=plugin.Hello", "--trainer.callbacks.word=there")
    assert ended.code == 0
    assert "hello there" in ended.out


def test_bare_names_of_lightnings_callbacks_and_loggers(run):
    ended = run(
        "B", "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=train/loss",
        "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=elsewhere",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")


def test_an_optimizer_and_a_schedule_from_the_config(run):
    optimizer = ["--optimizer=SGD", "--optimizer.lr=0.1"]
    ended = run("B", *optimizer, "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1")
    assert (ended.code, ended.err) == (0, "")


def test_an_option_given_twice_is_accepted_with_a_warning(run, version):
    ended = run("B", "--model.lr=0.5", "--model.lr", "0.25", "--data.seed=1")
    assert ended.code == 0
    assert ended.err == "warning: model.lr given twice; the last one counts\n"
    config = yaml.safe_load((version / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.25


def test_settings_of_a_class_named_anew_are_no_repetition(run):
    ended = run(
        "B", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=a",
        "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=b", "--print_config",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    monitors = [
        item["init_args"]["monitor"] for item in yaml.safe_load(ended.out)["trainer"]["callbacks"]
    ]
    assert monitors == ["a", "b"]


def test_without_a_logger_a_config_of_ones_own_is_not_overwritten(run, write):
    mine = write("config.yaml", "trainer: {max_epochs: 1}")
    assert run("B", "--trainer.logger=false", "--config=config.yaml").code == 0
    assert mine.read_text() == "trainer: {max_epochs: 1}"


# -- checkpoints -----------------------------------------------------------------------------


def test_fit_goes_on_from_the_newest_run_and_says_when_there_is_nothing_to_do(run, version):
    run("B")
    ended = run("B", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert ended.code == 0
    assert [row["round"] for row in rows(version / "metrics.csv")] == ["0", "1"]
    assert [path.name for path in version.parent.iterdir()] == ["version_0"]
    before = {path: path.read_bytes() for path in version.rglob("*.*") if path.suffix != ".png"}
    for rounds in (2, 1):
        ended = run("B", "--ckpt_path=last", f"--trainer.max_epochs={rounds}")
        assert ended.code == 0
        assert f"nothing to do: 2/{rounds} rounds are done" in ended.out
    assert {path: path.read_bytes() for path in before} == before


def test_validate_test_and_predict_take_the_newest_checkpoint_or_a_run_folder(run, version):
    run("B", "--trainer.callbacks=PersonalizationCallback")
    config = f"--config={version / 'config.yaml'}"
    for command in ("validate", "test"):
        ended = run(command, config, "--ckpt_path=last")
        assert (ended.code, ended.err) == (0, "")
        assert "global/acc" in ended.out
        assert "files: " in ended.out
    ended = run("test", config, f"--ckpt_path={version}")
    assert "personalized/acc" in ended.out


@pytest.mark.parametrize("command", ["validate", "test", "personalize", "predict"])
def test_no_random_weights_are_evaluated_silently(run, tmp_path, command):
    ended = run(command, "--config=ok.yaml")
    assert ended.code == 2
    assert ended.error.startswith(f"error: {command} needs a trained model: pass --ckpt_path")
    assert [path.name for path in tmp_path.iterdir()] == ["ok.yaml"]


class Unknown:
    pass


def test_checkpoints_that_are_none(run, tmp_path):
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "text.ckpt").write_text("hello " * 50)
    torch.save(MLP(hidden=[4]).state_dict(), tmp_path / "bare.ckpt")
    torch.save({"pytorch-lightning_version": "2.6.0", "x": Unknown()}, tmp_path / "object.ckpt")
    whole = (tmp_path / "bare.ckpt").read_bytes()
    (tmp_path / "torn.ckpt").write_bytes(whole[: len(whole) // 2])
    before = sorted(tmp_path.iterdir())
    for path, message in {
        "nofile.ckpt": "ckpt_path='nofile.ckpt': no such file",
        "s3://bucket/last.ckpt": "ckpt_path='s3://bucket/last.ckpt': remote paths are not read",
        str(tmp_path): f"ckpt_path='{tmp_path}' is a folder with no checkpoint in it",
        "last": "ckpt_path='last': no lightning_logs/version_*",
        "empty.ckpt": "ckpt_path='empty.ckpt' is empty",
        "text.ckpt": "ckpt_path='text.ckpt' is corrupt, or not a checkpoint",
        "torn.ckpt": "ckpt_path='torn.ckpt' is corrupt",
        "bare.ckpt": "ckpt_path='bare.ckpt': not a fedlightning checkpoint",
        "object.ckpt": "ckpt_path='object.ckpt': it holds an object of",
    }.items():
        for command in ("fit", "test"):
            ended = run(command, "--config=ok.yaml", f"--ckpt_path={path}")
            assert ended.code == 4, ended.err
            assert ended.error.startswith(f"error: {message}")
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_of_another_network(run):
    run("B")
    ended = run("B", "--ckpt_path=last", "--model.hidden=[5]", "--trainer.max_epochs=2")
    assert ended.code == 4
    assert "body.1.weight is (4, 64) in the checkpoint, vs (5, 64) in the model" in ended.error


# -- predictions -----------------------------------------------------------------------------


def test_predictions_are_written_for_every_test_example(run, version):
    run("B")
    ended = run("predict", "--config=ok.yaml", "--ckpt_path=last")
    assert (ended.code, ended.err) == (0, "")
    table = rows(version.parent / "version_1" / "predictions.csv")

    data = Digits(num_clients=5, batch_size=100, partition=Shards(2), seed=0)
    data.setup()
    model = MLP(hidden=[4]).eval()
    checkpoint = torch.load(version / "checkpoints" / "last.ckpt", weights_only=True)
    model.load_state_dict(checkpoint["state_dict"])
    expected, right = [], 0
    for client in range(5):
        inputs = torch.cat([x for x, _ in data.batches(client, "test")])
        top, classes = model(inputs).softmax(dim=1).max(dim=1)
        triples = zip(
            data.indices(client, "test"), data.labels(client, "test"), classes, top, strict=True
        )
        for sample, label, prediction, probability in triples:
            right += int(label == prediction)
            expected.append(
                (
                    client,
                    sample,
                    label,
                    prediction.item(),
                    pytest.approx(probability.item(), rel=1e-4),
                )
            )
    found = [tuple(float(value) for value in row.values()) for row in table]
    assert found == expected
    assert list(table[0]) == ["client_id", "sample", "label", "prediction", "probability"]
    assert f"accuracy of the global model: {100 * right / len(table):.1f} %" in ended.out


def test_a_predict_step_that_returns_no_tensor(run, plugin):
    run("B")
    ended = run(
        "predict",
        "--config=ok.yaml",
        "--ckpt_path=last",
        "--model=plugin.NoTensor",
        "--model.hidden=[4]",
    )
    assert ended.code == 2
    assert "NoTensor.predict_step must return a tensor" in ended.error
