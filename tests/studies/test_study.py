import pytest

from fedlightning.errors import ConfigError
from fedlightning.studies.plan import changed_settings, plan, settings_digest
from fedlightning.studies.study import read_study, study_source

GOOD = "base: {model: MLP, federation: {algorithm: FedBABU}}\nvariants: [FedAvg, FedBABU]\n"


@pytest.fixture
def read(tmp_path):
    def read_(text, **changes):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return read_study(path, changes)

    return read_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants: [FedAvg]\n", "a study needs base"),
        ("base: {model: MLP}\n", "a study needs variants"),
        (GOOD + "variant: 1\n", "a study has no key 'variant'. Did you mean 'variants'"),
        (GOOD + "trainer: {max_epochs: 1}\n", "Settings of all runs belong under settings"),
        (GOOD + "base: x\n", r"duplicate key base \(lines 1, 3\)"),
        (GOOD + "seeds: []\n", "seeds must be a list"),
        (GOOD + "seeds: [0, 0]\n", "has duplicates"),
        (GOOD + "seeds: [-1]\n", "seeds: -1 is none"),
        (GOOD + "workers: 0\n", "workers must be an integer >= 1 and <= 1024, got 0"),
        (GOOD + "baseline: FedAVG\n", "not a variant. Did you mean 'FedAvg'"),
        (GOOD + "grid: {a: 3}\n", "grid.a must be a list of values, got 3"),
        (GOOD + "grid: {a: [1, 1]}\n", "has duplicates"),
        (GOOD + "settings: {seed_everything: 1}\n", "belong under seeds"),
        (
            "base: {model: MLP}\nvariants: [FedAvg, FedAvg]\n",
            "FedAvg occurs twice; write a map",
        ),
        ("base: {model: MLP}\nvariants: {a/b: {}}\n", "'a/b' is not a valid name"),
        ("base: {model: MLP}\nvariants: {a: 3}\n", "variants.a must be a mapping"),
        ("base: nowhere.yaml\nvariants: [FedAvg]\n", "config nowhere.yaml not found"),
        ("base: !!python/name:os.system\nvariants: [FedAvg]\n", "tag"),
        ("- 1\n", "top level must be a mapping"),
    ],
)
def test_what_is_wrong_with_a_study_is_named(read, text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_variants_may_be_names_classes_or_settings(read):
    study = read(
        "base: {model: MLP}\n"
        "variants:\n"
        "  plain:\n"
        "  FedAvg: FedAvg\n"
        "  strong: {class_path: FedProx, init_args: {mu: 1.0}}\n"
        "  tuned: {trainer.max_epochs: 3}\n"
    )
    prox = {"class_path": "FedProx", "init_args": {"mu": 1.0}}
    assert study.variants == {
        "plain": {},
        "FedAvg": {"federation.algorithm": "FedAvg"},
        "strong": {"federation.algorithm": prox},
        "tuned": {"trainer.max_epochs": 3},
    }


def test_every_variant_meets_every_point_of_the_grid_with_every_seed(read):
    study = read(
        GOOD + "seeds: [3, 1]\ngrid:\n  federation.cohort_size: [0.1, 1.0]\n"
        "  data: {few: {data.num_clients: 5}, many: {data.num_clients: 50}}\n"
    )
    runs = plan(study, {"trainer.max_epochs": 4})
    assert len(runs) == 2 * 2 * 2 * 2
    assert [run.seed for run in runs] == [3] * 8 + [1] * 8, "all of one seed come first"
    first, last = runs[0], runs[-1]
    assert first.name == "FedAvg, cohort_size=0.1, few, seed 3"
    assert first.folder.as_posix() == "studies/mine/runs/FedAvg/cohort_size=0.1,few/seed_3"
    assert last.config["seed_everything"] == 1
    assert last.config["federation"] == {"algorithm": "FedBABU", "cohort_size": 1.0}
    assert last.config["data"] == {"num_clients": 50}
    assert last.rounds == 4


def test_a_variant_cannot_set_what_the_grid_varies(read):
    study = read("base: {model: MLP}\nvariants: {a: {x: 1}}\ngrid: {x: [1, 2]}\n")
    with pytest.raises(ConfigError, match=r"variants.a sets x, which grid.x varies"):
        plan(study)


def test_runs_do_not_share_a_folder(read):
    study = read("base: {model: MLP}\nvariants: {'a b': {x: 1}, a_b: {x: 2}}\n")
    with pytest.raises(ConfigError, match="would share the folder"):
        plan(study)


def test_numbers_with_an_exponent_are_numbers(read):
    study = read("base: {model: MLP}\nvariants: {a: {model.lr: 1e-3}}\n")
    assert study.variants["a"] == {"model.lr": 0.001}


def test_the_command_line_wins_over_the_file(read, tmp_path):
    study = read(GOOD + "seeds: 3\n", seeds=[7], output=str(tmp_path))
    assert study.seeds == (7,)
    assert study.output == tmp_path


def test_the_digest_is_of_what_results_depend_on():
    one = {"model": "MLP", "data": {"class_path": "Digits", "init_args": {"root": "/a"}}}
    two = {"model": {"class_path": "MLP"}, "data": {"class_path": "Digits"}}
    assert settings_digest(one) == settings_digest(two)
    other = {**two, "model": {"class_path": "MLP", "init_args": {"lr": 1}}}
    assert settings_digest(other) != settings_digest(two)
    assert changed_settings(two, other) == ["model.lr: not set -> 1"]


@pytest.mark.parametrize(
    ("changes", "overrides"),
    [
        ({}, {}),
        ({"seeds": [4, 7]}, {}),
        ({"baseline": "B", "workers": 2}, {"model.lr": 0.5, "federation.cohort_size": 3}),
    ],
    ids=["base", "seeds", "settings"],
)
def test_the_file_in_the_folder_plans_the_same_runs(tmp_path, changes, overrides):
    (tmp_path / "mine.yaml").write_text("model: {class_path: MLP, init_args: {lr: 0.1}}\n")
    path, output = tmp_path / "two.yaml", tmp_path / "deep" / "out"
    path.write_text(
        f"base: mine.yaml\noutput: {output}\ngrid: {{data.seed: [1, 2]}}\n"
        "variants: {A: FedAvg, B: {model.lr: 0.3, federation.algorithm: FedProx}}\n"
    )
    study = read_study(path, changes)
    output.mkdir(parents=True)
    (output / "study.yaml").write_bytes(study_source(path, study, changes, overrides))
    again = read_study(output / "study.yaml")
    planned = plan(study, overrides)
    rates = {run.variant: run.config["model"]["init_args"]["lr"] for run in planned}
    assert rates["B"] == overrides.get("model.lr", 0.3)
    assert plan(again) == planned
    assert (again.name, again.workers, again.baseline) == ("two", study.workers, study.baseline)


def test_a_file_that_says_it_all_is_left_as_it_is(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("# why\nbase: quickstart.yaml\nvariants: [FedAvg, FedBABU]\n")
    assert study_source(path, read_study(path), {}, {}) == path.read_bytes()
