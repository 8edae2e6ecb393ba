"""`personalize` and `export` on the command line."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fedlightning import PersonalizationCallback, Run
from fedlightning.core.state import live_state
from fedlightning.errors import ConfigError
from fedlightning.models import MLP
from fedlightning.personalization.models.reader import read_index, read_personal

RULE = ["--trainer.callbacks=PersonalizationCallback", "--trainer.callbacks.lr=0.1"]
EVERYTHING = ["--config=ok.yaml", *RULE, "--ckpt_path=last"]


@pytest.fixture
def done(run, version):
    """The folder of a run with personal models."""
    assert run("B", *RULE).code == 0
    return version


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_personalize_writes_a_run_folder_of_its_own(run, done):
    before = files(done)
    ended = run("personalize", *EVERYTHING)
    assert (ended.code, ended.err) == (0, "")
    assert "personalized/acc" in ended.out
    assert "global/acc" not in ended.out
    again = done.parent / "version_1"
    assert f"files: {again.relative_to(done.parents[1])}" in ended.out
    assert {"clients.csv", "clients.png", "personalized", "config.yaml"} <= {
        path.name for path in again.iterdir()
    }
    assert read_index(again).digests == read_index(done).digests
    assert (again / "clients.csv").read_bytes() == (done / "clients.csv").read_bytes()
    assert files(done) == before


def test_some_clients_and_new_data(run, done):
    ended = run("personalize", *EVERYTHING, "--clients", "1,3-4")
    assert (ended.code, ended.err) == (0, "")
    some, all_of_them = read_index(done.parent / "version_1").digests, read_index(done).digests
    assert some == {client: all_of_them[client] for client in (1, 3, 4)}
    ended = run("personalize", *EVERYTHING, "--data.num_clients=10", "--clients=[7]")
    assert (ended.code, ended.err) == (0, "")
    assert list(read_index(done.parent / "version_2").digests) == [7]


def test_without_a_callback_it_says_that_the_defaults_count(run, done):
    ended = run("personalize", "--config=ok.yaml", f"--ckpt_path={done}")
    assert (ended.code, ended.err) == (0, "")
    assert "no PersonalizationCallback among trainer.callbacks: part=head, epochs=5" in ended.out


@pytest.mark.parametrize(
    "options",
    [
        ["precision=bf16-mixed"],
        ["precision=64-true"],
        ["gradient_clip_val=0.01"],
        ["gradient_clip_val=0.01", "gradient_clip_algorithm=value"],
        ["accumulate_grad_batches=2"],
        ["limit_train_batches=1"],
    ],
)
def test_python_makes_the_models_of_the_command_with_the_runs_trainer(run, version, options):
    assert run("B", *RULE, *(f"--trainer.{option}" for option in options)).code == 0
    words = [f"--config={version / 'config.yaml'}", f"--ckpt_path={version}"]
    assert run("personalize", *words).code == 0
    by_command, by_python = version.parent / "version_1", Run(version).personalize().folder
    assert by_python == version.parent / "version_2"
    assert read_index(by_python).digests == read_index(by_command).digests
    assert (by_python / "clients.csv").read_bytes() == (by_command / "clients.csv").read_bytes()


def test_python_takes_callbacks_and_accelerator_of_the_run_too(run, version, plugin, monkeypatch):
    monkeypatch.syspath_prepend(version.parents[1])
    config = version / "config.yaml"
    own = [f"--trainer.callbacks+={name}" for name in ("plugin.Hello", "TQDMProgressBar")]
    assert run("B", *RULE, *own, "--trainer.enable_progress_bar=true").code == 0
    again = Run(version).personalize(personalization=PersonalizationCallback(epochs=0))
    callbacks = again.config["trainer"]["callbacks"]
    names = [each["class_path"].rpartition(".")[2] for each in callbacks]
    assert names == ["Hello", "PersonalizationCallback"]
    assert callbacks[1]["init_args"]["epochs"] == 0
    config.write_text(config.read_text().replace("accelerator: auto", "accelerator: cuda"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"trainer\.accelerator=cuda: no GPU"):
            Run(version).personalize()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clients=x"], "clients must be ids or ranges of ids, such as 3,7,10-19, got 'x'"),
        (["--clients=9"], "no client 9 in Digits, whose clients are 0 to 4"),
        (["--client=3"], "unknown option client. Did you mean 'clients'?"),
    ],
)
def test_clients_that_are_none(run, done, options, message):
    ended = run("personalize", *EVERYTHING, *options)
    assert ended.code == 2
    assert message in ended.error
    assert [path.name for path in done.parent.iterdir()] == ["version_0"]


def test_a_choice_of_clients_means_nothing_to_other_commands(run, done):
    ended = run("test", *EVERYTHING, "--clients=3")
    assert ended.code == 2
    assert "unknown option clients" in ended.error


def test_checkpoints_that_are_none(run, done, tmp_path):
    ended = run("personalize", "--config=ok.yaml")
    assert ended.code == 2
    assert ended.error.startswith("error: personalize needs a trained model: pass --ckpt_path")
    last = done / "checkpoints" / "last.ckpt"
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(last.read_bytes()[:-1])
    torch.save(MLP(hidden=[4]).state_dict(), tmp_path / "bare.ckpt")
    for path, message in {
        "torn.ckpt": "is corrupt",
        "bare.ckpt": "not a fedlightning checkpoint",
        "none.ckpt": "no such file",
    }.items():
        ended = run("personalize", "--config=ok.yaml", f"--ckpt_path={path}")
        assert ended.code == 4
        assert message in ended.error
    ended = run("personalize", "--config=ok.yaml", f"--ckpt_path={last}", "--model.hidden=[5]")
    assert ended.code == 4
    assert "is (4, 64) in the checkpoint, vs (5, 64) in the model" in ended.error
    assert [path.name for path in done.parent.iterdir()] == ["version_0"]


# -- export ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["--run={run} --client=3", "--run {run} --client 3"])
def test_export_writes_the_whole_model_of_a_client(run, done, words):
    ended = run("export", *words.format(run=done).split(), "--output=mine.safetensors")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("the model of client 3 (MLP, safetensors, ")
    own = read_personal(read_index(done), 3)
    globally = load_file(done / "checkpoints" / "model.safetensors")
    found = load_file("mine.safetensors")
    assert found.keys() == globally.keys()
    assert all(torch.equal(found[key], {**globally, **own}[key]) for key in found)


def test_export_of_a_program_needs_neither_data_nor_shape(run, done):
    ended = run("export", f"--run={done}", "--client=global", "--output=all.pt2", "--strict")
    assert (ended.code, ended.err) == (0, "")
    module = MLP(hidden=[4]).eval()
    state = torch.load(done / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    module.load_state_dict(state)
    batch = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(torch.export.load("all.pt2").module()(batch), module(batch))


def test_export_of_what_a_command_of_its_own_has_personalised(run, done):
    run("personalize", *EVERYTHING, "--clients=2")
    for number in (0, 1):
        ended = run(
            "export", f"--run={done.parent / f'version_{number}'}", "--client=2",
            f"--output={number}.safetensors",
        )  # fmt: skip
        assert (ended.code, ended.err) == (0, "")
    first, second = load_file("0.safetensors"), load_file("1.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in live_state(MLP(hidden=[4])))


def test_classes_of_ones_own_run_their_code_only_without_strict(run, plugin):
    ended = run("B", "--model=plugin.NoTensor", "--model.hidden=[4]", *RULE)
    assert ended.code == 0
    words = ["export", "--run=lightning_logs/version_0", "--client=1"]
    ended = run(*words, "--output=a.pt")
    assert (ended.code, ended.err) == (0, "")
    assert "(NoTensor, state_dict" in ended.out
    ended = run(*words, "--output=b.pt", "--strict")
    assert ended.code == 2
    assert "plugin.NoTensor" in ended.error
    assert "with --strict, configs name classes of fedlightning" in ended.error


def test_a_file_is_overwritten_only_when_told_to(run, done, write):
    mine = write("mine.pt", "mine")
    words = ["export", f"--run={done}", "--client=1", "--output=mine.pt"]
    ended = run(*words)
    assert ended.code == 2
    assert "output: mine.pt exists: choose another name, or pass --overwrite" in ended.error
    assert mine.read_text() == "mine"
    assert run(*words, "--overwrite").code == 0
    assert len(torch.load(mine, weights_only=True)) == 4


def test_damage_and_mismatch_are_the_checkpoints_fault(run, done):
    words = ["export", f"--run={done}", "--client=1", "--output=mine.pt"]
    path = done / "personalized" / "client_00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ended = run(*words)
    assert ended.code == 4
    assert "is damaged: its bytes are not those that were written" in ended.error
    path.write_bytes(whole)
    assert run("B", "--ckpt_path=last", "--trainer.max_epochs=2").code == 0  # without a callback
    ended = run(*words)
    assert ended.code == 4
    assert "goes with another global model, of round 0" in ended.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "export needs run and client and output: python -m fedlightning export --run DIR"),
        (["--run=x", "--client=1"], "export needs output: "),
        (["--run=x", "--client=a", "--output=m.pt"], "client must be a client id or global"),
        (["--run=x", "--client=1", "--output=m.pt"], "run='x' is not a folder"),
        (["--run=x", "--client=1", "--output=m"], "the name does not say the format"),
        (["--run=x", "--client=1", "--output=m.pt", "--format=onx"], "Did you mean 'onnx'?"),
        (["--run=x", "--client=1", "--output=m.pt", "--input_shape=a"], "input_shape must be"),
        (["--run=x", "--clent=1"], "unknown option clent. Did you mean 'client'?"),
        (["x"], "unexpected 'x': options are written --key=value"),
        (["--run"], "--run: expected one argument"),
    ],
)
def test_words_that_export_does_not_understand(run, options, message):
    ended = run("export", *options)
    assert ended.code == 2
    assert message in ended.error


def test_help_of_both(run):
    ended = run("export", "--help")
    assert ended.code == 0
    for word in ("--run", "--client", "--output", "exported_program", "--strict", "--overwrite"):
        assert word in ended.out
    ended = run("personalize", "--help")
    assert ended.code == 0
    for word in ("--clients", "--ckpt_path", "--data.help"):
        assert word in ended.out
