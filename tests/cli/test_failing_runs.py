"""Runs that fail: the exit code, the line, and what is left behind."""

import signal

import pytest


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--data.num_clients=2000", 3, "2000 clients > "),
        ("--model.head=fc", 2, "head='fc' matches no parameter of MLP"),
        ("--federation.cohort_size=6", 2, ""),
        ("--model.lr=1e30", 5, "client 2, round 0: the norm of body.1.weight of its update is"),
        (
            "--trainer.callbacks=plugin.Breaks",
            5,
            "round 0: KeyError: 'my own mistake' (plugin",
        ),
        ("--trainer.default_root_dir=/proc/nope", 6, "cannot create /proc/nope"),
        ("--trainer.default_root_dir=ok.yaml/x", 6, "cannot create ok.yaml/x"),
        ("--trainer.callbacks=EarlyStopping --trainer.callbacks.monitor=a", 2, "a is never"),
        (
            "--trainer.callbacks=ModelCheckpoint --trainer.callbacks.monitor=a",
            2,
            "a is never logged",
        ),
    ],
)
def test_a_run_that_fails_before_its_first_round_is_done_leaves_nothing(
    run, plugin, tmp_path, options, code, message
):
    before = sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__")
    ended = run("B", "--trainer.default_root_dir=runs", *options.split())
    assert ended.code == code
    assert ended.error.startswith(f"error: {message}")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == before


def test_who_monitors_validation_data_that_are_not_there_is_told_how_to_get_some(run):
    ended = run("B", "--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.monitor=val/acc")
    assert ended.code == 2
    assert ended.error.startswith("error: val/acc is never logged")
    assert ended.error.endswith(" data.val_fraction holds validation data out.")


def test_a_client_that_raises_is_named_and_earlier_rounds_are_kept(run, plugin, version):
    ended = run("B", "--model=plugin.Raises", "--trainer.max_epochs=3")
    assert ended.code == 5
    assert "round 1: ValueError: a bug of mine (plugin.py:31)" in ended.error
    assert ended.error.startswith("error: client ")
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    saved = f"{last} holds round 0; resume with --ckpt_path last."
    assert ended.err.splitlines()[-1] == saved
    assert (version / "checkpoints" / "last.ckpt").exists()


def test_a_round_in_which_all_clients_fail_ends_the_run_under_skip_too(run, plugin):
    words = ["--federation.on_client_failure=skip", "--trainer.max_epochs=3"]
    ended = run("B", "--model=plugin.Raises", *words)
    assert ended.code == 5
    assert ended.error.startswith(
        "error: round 1: 0 of 2 clients succeeded, federation.min_clients=1. exception: clients "
    )
    assert ended.err.count("ValueError: a bug of mine (plugin.py:31) (skipped)") == 2
    assert "last.ckpt holds round 0" in ended.err.splitlines()[-1]


def test_memory_that_a_client_lacks_is_the_machines_trouble(run, plugin, write):
    write(
        "greedy.py",
        "from fedlightning.models import MLP\n"
        "class Greedy(MLP):\n"
        "    def training_step(self, batch, batch_idx): raise MemoryError\n",
    )
    ended = run("B", "--model=greedy.Greedy")
    assert ended.code == 6
    assert ended.error.startswith("error: out of memory")


def test_what_all_processes_of_a_run_find_wrong_is_said_once(run, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    ended = run("B", "--model.lr=1", "--model.lr=2", "--data.batchsize=4")
    assert (ended.code, ended.err) == (2, "")


def test_a_run_that_goes_on_and_fails_at_once_leaves_what_was_there(run, plugin, version):
    run("B")
    checkpoint = (version / "checkpoints" / "last.ckpt").read_bytes()
    ended = run("B", "--ckpt_path=last", "--trainer.max_epochs=2", "--model=plugin.Raises")
    assert ended.code == 5
    assert "last.ckpt holds round 0; resume with --ckpt_path last" in ended.err.splitlines()[1]
    assert [path.name for path in version.parent.iterdir()] == ["version_0"]
    assert (version / "checkpoints" / "last.ckpt").read_bytes() == checkpoint


def test_a_full_disk(run, plugin):
    ended = run("B", "--trainer.callbacks=plugin.Full", "--trainer.max_epochs=3")
    assert ended.code == 6
    assert ended.error == "error: No space left on device: last.ckpt"
    assert "last.ckpt holds round 0" in ended.err


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_run_says_what_is_saved(run, plugin, name, code):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    options = ["--trainer.callbacks=plugin.Signals", f"--trainer.callbacks.name={name}"]
    ended = run("B", "--trainer.max_epochs=3", *options)
    assert ended.code == code
    assert ended.err == (
        "interrupted in round 1: lightning_logs/version_0/checkpoints/last.ckpt holds round 0; "
        "resume with --ckpt_path last.\n"
    )
    ended = run("B", "--trainer.default_root_dir=r", *options, "--trainer.callbacks.round=0")
    assert ended.code == code
    assert ended.err == "interrupted in round 0: no round is saved.\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_metric_that_never_came_is_warned_of(run):
    ended = run(
        "B", "--trainer.check_val_every_n_epoch=9", "--trainer.callbacks=EarlyStopping",
        "--trainer.callbacks.monitor=train_loss",
    )  # fmt: skip
    assert ended.code == 0
    assert ended.err == (
        "warning: EarlyStopping did nothing: 'train_loss' was never logged. "
        "Did you mean 'train/loss'?\n"
    )


def test_a_file_that_cannot_be_read_is_the_datas_fault(run, write):
    write(
        "mydata.py",
        "from fedlightning.datamodules import FederatedDataModule\n"
        "class Mine(FederatedDataModule):\n"
        "    def load(self): return open('nofile.bin')\n",
    )
    ended = run("B", "--data=mydata.Mine")
    assert ended.code == 3
    assert ended.error.startswith("error: data: Mine: FileNotFoundError: ")


@pytest.mark.filterwarnings("ignore")
def test_debugging_shows_the_traceback(run, monkeypatch):
    monkeypatch.setenv("FEDLIGHTNING_DEBUG", "1")
    ended = run("B", "--model.lr=-1")
    assert ended.code == 2
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.splitlines()[-1] == "error: model.lr must be a finite number > 0, got -1.0."
