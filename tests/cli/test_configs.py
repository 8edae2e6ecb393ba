"""Config files: interpolation, merging, and what is printed and saved."""

import pytest
import yaml

from fedlightning.cli.config.recipes import shipped_recipes
from tests.cli.error_tables import table

REFERENCES = """
model:
  class_path: MLP
  init_args:
    hidden: ["${data.partition.per_client}", 3]
    lr: ${federation.local_epochs}
data: {class_path: Digits, init_args: {num_clients: 10}}
federation: {cohort_size: "${data.num_clients}"}
trainer:
  max_epochs: ${data.partition.per_client}
  default_root_dir: ${oc.env:HOME}/clients-${data.num_clients}
"""


def printed(run, *options: str) -> dict:
    ended = run("B", *options, "--print_config")
    assert (ended.code, ended.err) == (0, "")
    return yaml.safe_load(ended.out)


def test_references_use_the_keys_that_users_write_and_see_overrides(run, write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    write("ref.yaml", REFERENCES)
    config = printed(run, "--config=ref.yaml")
    assert config["federation"]["cohort_size"] == 10
    assert config["model"]["init_args"]["hidden"] == [2, 3]
    assert config["trainer"]["default_root_dir"] == "/home/me/clients-10"
    config = printed(
        run, "--config=ref.yaml", "--data.num_clients=7", "--data.partition.per_client=5",
        "--federation.local_epochs=4",
    )  # fmt: skip
    assert config["federation"]["cohort_size"] == 7
    assert config["trainer"]["max_epochs"] == 5
    assert config["trainer"]["default_root_dir"] == "/home/me/clients-7"
    assert config["model"]["init_args"]["hidden"] == [5, 3]
    assert config["model"]["init_args"]["lr"] == 4.0


def test_references_work_on_the_command_line_and_to_whole_groups(run, write):
    config = printed(
        run, "--federation.cohort_size=${data.num_clients}", "--model.lr", "${data.num_clients}"
    )
    assert config["federation"]["cohort_size"] == 5
    assert config["model"]["init_args"]["lr"] == 5.0
    write(
        "two.yaml",
        "model: {init_args: {num_classes: '${data.batch_size}'}}\n"
        "data: {init_args: {seed: '${seed_everything}'}}",
    )
    config = printed(run, "--config=two.yaml")
    assert config["model"]["init_args"]["num_classes"] == 100
    assert config["data"]["init_args"]["seed"] == 0


@pytest.mark.parametrize(("text", "message"), table("bad_references.txt"))
def test_a_bad_reference_is_named_with_the_setting_that_has_it(run, write, text, message):
    write("bad.yaml", text)
    ended = run("B", "--config=bad.yaml")
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")


def test_configs_merge_in_order_and_options_win(run, write):
    write("one.yaml", "data: {init_args: {batch_size: 1, num_clients: 8}}")
    write("two.yaml", "data: {init_args: {batch_size: 2}}")
    data = printed(run, "--config=one.yaml", "-c", "two.yaml", "--data.seed=3")["data"]["init_args"]
    assert (data["batch_size"], data["num_clients"], data["seed"]) == (2, 8, 3)
    assert data["partition"]["init_args"] == {"per_client": 2}


def test_a_printed_config_prints_the_same(run, write):
    first = run("B", "--model.lr=0.25", "--optimizer=SGD", "--optimizer.lr=1", "--print_config").out
    write("printed.yaml", first)
    assert run("fit", "--config=printed.yaml", "--print_config").out == first


def test_runs_repeat_unless_told_otherwise(run):
    assert printed(run)["seed_everything"] == 0


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_parses(run, name):
    ended = run("fit", "--config", name, "--print_config")
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("command", ["validate", "test", "personalize", "predict"])
def test_one_config_serves_all_commands(run, command):
    fit = run("B", "--print_config").out
    assert run(command, "--config=ok.yaml", "--print_config").out == fit
