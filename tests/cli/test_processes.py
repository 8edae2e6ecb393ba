"""The command line as a process of its own."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedlightning

MODULE = [sys.executable, "-m", "fedlightning"]


def start(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MODULE, *words], capture_output=True, text=True)


def test_without_arguments_it_says_what_it_expects():
    ended = start()
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) <= 6
    assert (
        ended.stderr.splitlines()[-1]
        == "error: expected one of fit, validate, test, personalize, predict, export, check, "
        "compare, deploy, influence, report, tune, watch"
    )


def test_help_and_version_are_quick_and_need_no_torch():
    code = (
        "import sys; from fedlightning.__main__ import main; code = main(['--help']); "
        "heavy = {'torch', 'pytorch_lightning', 'jsonargparse', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    begin = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - begin < 2
    words = ["fit", "validate", "test", "personalize", "predict", "export"]
    for word in (*words, "--config quickstart.yaml", "fit --help"):
        assert word in ended.stdout
    assert "quickstart.yaml" in ended.stdout
    assert start("--version").stdout.strip() == f"fedlightning {fedlightning.__version__}"


@pytest.mark.parametrize(
    "words", [["fti"], ["--config", "x.yaml", "fit"], ["fit", "--config", "x"]]
)
def test_what_is_wrong_with_command_or_file_is_said_without_torch(words):
    begin = time.monotonic()
    ended = start(*words)
    assert time.monotonic() - begin < 2
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")


def test_strict_refuses_a_class_before_it_is_imported(tmp_path, base):
    (tmp_path / "evilmod.py").write_text("open('M', 'w').close()\ndef f(): ...\n")
    ended = start("fit", "--config", "ok.yaml", "--model=evilmod.f", "--strict")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: model: evilmod.f not allowed: with --strict")
    assert not (tmp_path / "M").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_with_its_code_and_what_is_saved(tmp_path, base, number):
    process = subprocess.Popen(
        [*MODULE, "fit", "--config", "ok.yaml", "--trainer.max_epochs=100000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    checkpoint = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    try:
        for _ in range(600):
            if checkpoint.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert err.startswith("interrupted in round ")
    assert f"{Path('lightning_logs/version_0/checkpoints/last.ckpt')} holds round" in err
    assert len(err.splitlines()) == 1
