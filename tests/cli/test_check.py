"""`check`: what a config would import, with nothing imported, and whether it would be accepted."""

import sys

import pytest

FOREIGN = """
model: {class_path: evilmod.Net, init_args: {width: 3}}
trainer:
  callbacks: [{class_path: evilmod.Callback, init_args: {word: a.b}}, Timer]
"""


@pytest.fixture
def evil(write, tmp_path, monkeypatch):
    """A module whose import leaves a file behind."""
    monkeypatch.delitem(sys.modules, "evilmod", raising=False)
    write("evilmod.py", "open('M', 'w').close()\n")
    write("foreign.yaml", FOREIGN)
    yield
    assert not (tmp_path / "M").exists()
    assert "evilmod" not in sys.modules


def test_a_config_that_would_be_accepted(run):
    ended = run("check", "ok.yaml")
    # jsonargparse also speaks of classes that other tests of the same process have left behind
    said = [line for line in ended.err.splitlines() if "Hit failing import" not in line]
    assert (ended.code, said) == (0, [])
    assert ended.out.splitlines() == [
        "classes that would be imported:",
        "  MLP      model",
        "  Digits   data",
        "  Shards   data.partition",
        "  FedBABU  federation.algorithm",
        "ok: ok.yaml would be accepted",
    ]


def test_classes_of_other_packages_are_named_and_not_imported(run, evil):
    ended = run("check", "ok.yaml", "--config", "foreign.yaml")
    assert ended.code == 0
    refused = "(of another package: --strict refuses it)"
    assert f"  evilmod.Net       model  {refused}" in ended.out.splitlines()
    assert f"  evilmod.Callback  trainer.callbacks  {refused}" in ended.out.splitlines()
    assert "  Timer             trainer.callbacks" in ended.out.splitlines()
    assert ended.out.endswith("settings of 2 not checked, as that needs an import\n")


def test_strict_by_option_or_environment_refuses_them(run, evil, monkeypatch):
    message = "error: model: evilmod.Net not allowed: with --strict"
    ended = run("check", "--strict", "ok.yaml", "foreign.yaml")
    assert (ended.code, ended.error.startswith(message)) == (2, True)
    monkeypatch.setenv("FEDLIGHTNING_STRICT", "1")
    ended = run("check", "ok.yaml", "foreign.yaml")
    assert (ended.code, ended.error.startswith(message)) == (2, True)


def test_classes_that_options_name_count_too(run, evil):
    ended = run("check", "ok.yaml", "--model=evilmod.Net", "--model.width=3")
    assert ended.code == 0
    assert "evilmod.Net  model" in ended.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--trainer.max_epoch=3", "unknown option trainer.max_epoch"),
        ("--data.batch_size=0", "data.batch_size must be an integer >= 1, got 0"),
        ("--model.lr=abc", "model.lr must be a number, got 'abc'"),
    ],
)
def test_what_a_run_would_refuse_is_refused(run, tmp_path, options, message):
    ended = run("check", "ok.yaml", options)
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["ok.yaml"]


def test_every_item_put_on_a_list_is_named(run, evil):
    words = ["--trainer.callbacks+=evilmod.First", "--trainer.callbacks+=evilmod.Second"]
    ended = run("check", "ok.yaml", *words)
    assert ended.code == 0
    assert "evilmod.First" in ended.out
    assert "evilmod.Second" in ended.out


def test_without_a_config_there_is_nothing_to_check(run):
    assert run("check").error.startswith("error: check expects a config")


def test_every_stock_callback_with_an_enum_for_a_default_can_be_named(run):
    assert run("B", "--trainer.callbacks=Timer", "--trainer.logger=false").code == 0
