"""Tables as they come: what is learned from which rows, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from fedlightning.core.client_names import resolve_clients
from fedlightning.core.main_metric import MainMetric
from fedlightning.datamodules import (
    ClientDatasets,
    FederatedArrays,
    FederatedTable,
    GroupSplit,
    NaturalIds,
    TimeSplit,
)
from fedlightning.errors import ConfigError, DataError


def rows(**columns):
    rng = np.random.default_rng(0)
    table = {
        "hospital": np.repeat(["mayo", "charite", "köln"], 10),
        "age": rng.normal(50, 10, 30),
        "sex": ["f", "m"] * 15,
        "ill": ["no", "no", "yes"] * 10,
    }
    return pd.DataFrame({**table, **columns})


def table(given, **options):
    options = {"categories": ["sex"], "features": ["age"], "seed": 0, **options}
    data = FederatedTable(given, client="hospital", label="ill", **options)
    data.setup()
    return data


@pytest.mark.parametrize("held_out", [0, 1])
def test_only_rows_that_are_trained_on_decide_the_scale(held_out):
    given = rows()
    data = table(given, val_fraction=0.2, held_out_clients=held_out)
    trained = np.concatenate([data.indices(c, "train") for c in data.training_clients])
    ages = given["age"].to_numpy()
    expected = (ages - ages[trained].mean()) / ages[trained].std()
    np.testing.assert_allclose(data.pooled.test.inputs[:, 0], expected, atol=1e-5)


def test_a_category_that_nobody_trains_on_is_no_input():
    given = rows(time=np.arange(30))
    given.loc[9, "sex"] = "d"  # the latest row of its hospital: a test row
    data = table(given, split=TimeSplit("time"))
    assert data.features == ("age", "sex=f", "sex=m")
    assert data.pooled.test.inputs[9, 1:].tolist() == [0, 0]
    assert data.pooled.train.inputs.shape == (30, 3)


DAYS = ["2025-01-01", "2025-02-01", "2025-03-01"]


@pytest.mark.parametrize(
    ("trained", "tested"),
    [
        ([1, 2, 30], [1.0, 2.0, 30.0]),
        ([1, 2, 30], pd.array([1, 2, 30], dtype="Int64")),
        ([1, 2, 30], pd.Categorical([1.0, 2.0, 30.0])),
        ([1, 2, 30], pd.Series([1.0, 2, "30"], dtype=object)),
        ([1.0, 2.5, 30.0], pd.Series([1, 2.5, 30], dtype=object)),
        (np.array([0.1, 2.0, 1e20], np.float32), [0.1, 2.0, float(np.float32(1e20))]),
        ([True, False], ["True", "False"]),
        ([True, False], pd.array([True, False], dtype="boolean")),
        (["01", "1", "x"], pd.array(["01", "1", "x"], dtype="string")),
        (np.array(DAYS, "datetime64[s]"), np.array(DAYS, "datetime64[ns]")),
    ],
)
def test_a_value_is_one_category_and_one_owner_whatever_the_type_of_its_column(trained, tested):
    def of(values):
        column = pd.Series(values).repeat(6).reset_index(drop=True)
        ill = np.where(column.index % 2 == 0, "no", "yes")
        return pd.DataFrame({"hospital": column, "sex": column, "age": 1.0, "ill": ill})

    data = table(of(trained), test=of(tested))
    different = np.eye(len(trained)).repeat(6, axis=0)  # each row has the input of its own value
    for pool in (data.pooled.train, data.pooled.test):
        columns = pool.inputs[:, 1:].numpy().T
        assert sorted(columns.tolist()) == sorted(different.T.tolist())
    assert torch.equal(data.pooled.train.inputs, data.pooled.test.inputs)
    for client in range(len(trained)):
        rows_of = [data.indices(client, split).tolist() for split in ("train", "test")]
        assert len(rows_of[0]) == 6
        assert rows_of[0] == rows_of[1]


def test_a_patient_is_one_group_whatever_the_type_of_its_number():
    patient = pd.Series([1, 1.0, 2, 2.0, 3, 3.0] * 5, dtype=object)
    data = table(rows(patient=patient), split=GroupSplit("patient", test=0.4))
    for client in range(3):
        sides = [set(patient[data.indices(client, each)]) for each in ("train", "test")]
        assert sides[1]
        assert not set.intersection(*sides)


def test_a_constant_column_becomes_zeros():
    data = table(rows(age=0.1), features=["age"])
    assert abs(data.pooled.train.inputs[:, 0]).max() < 1e-6


@pytest.mark.parametrize("missing", [None, pd.NA, float("nan")])
@pytest.mark.parametrize("column", ["hospital", "sex", "group"])
def test_missing_text_is_refused_by_its_row(column, missing):
    given = rows(group=np.arange(30).astype(str)).astype({column: object})
    given.loc[3, column] = missing
    with pytest.raises(DataError, match=r"(row|example) 3 has no"):
        table(given, split=GroupSplit("group"))


def test_a_missing_number_is_refused_by_its_row_and_column():
    given = rows()
    given.loc[7, "age"] = np.nan
    with pytest.raises(DataError, match="row 7 has no 'age'"):
        table(given)


def test_a_blank_owner_is_missing():
    with pytest.raises(DataError, match="example 1 has no owner"):
        _ = NaturalIds(["mayo", "", "mayo"]).names


def test_groups_and_classes_of_several_types():
    group = pd.Series([*range(29), "x"], dtype=object)
    given = rows(group=group, ill=pd.Series([1, "yes"] * 15, dtype=object))
    assert table(given, split=GroupSplit("group")).classes == ("1", "yes")
    with pytest.raises(DataError, match="several types"):
        table(given, split=TimeSplit("group"))


def test_the_test_table_needs_the_same_columns():
    with pytest.raises(ConfigError, match="features='age'"):
        table(rows(), features=None, test=rows().drop(columns="age"))
    with pytest.raises(ConfigError, match="'age' holds"):
        table(rows(), features=None, test=rows(age="old"))


def test_a_column_that_occurs_twice_or_not_at_all():
    with pytest.raises(DataError, match="two columns 'age'"):
        table(pd.concat([rows(), rows()[["age"]]], axis=1))
    with pytest.raises(ConfigError, match="client=0 is not a column"):
        FederatedTable(rows(), client=0)


def test_label_columns_of_text_are_refused():
    with pytest.raises(ConfigError, match="'ill' holds"):
        FederatedTable(rows(), client="hospital", label=["ill", "age"], categories=["sex"])


def test_names_keep_their_zeros(tmp_path):
    given = rows(hospital=["007", "010", "011"] * 10)
    given.to_csv(tmp_path / "a.csv", index=False)
    assert table(tmp_path / "a.csv").client_names == ("007", "010", "011")
    rows(hospital=[9, 10, 11] * 10).to_csv(tmp_path / "b.csv", index=False)
    assert table(tmp_path / "b.csv").client_names == ("9", "10", "11")


def test_the_earliest_of_a_client_is_never_tested_on():
    mask = TimeSplit("t", test=0.9).taken(np.array([3, 2, 1]), 0.9, np.random.default_rng(0))
    assert mask.tolist() == [True, True, False]


def test_a_range_of_ids_that_are_others_names_is_refused():
    with pytest.raises(ConfigError, match="list the names"):
        resolve_clients(["1-3"], ["1", "2", "3", "4"])
    assert resolve_clients(["1-2"], ["0", "1", "2"]) == [1, 2]


def test_two_clients_of_one_name_are_refused():
    pair = np.zeros((3, 2)), [0, 1, 0]
    with pytest.raises(ConfigError, match="two clients of the name '1'"):
        ClientDatasets({1: pair, "1": pair})


def test_inputs_of_several_lengths_without_a_collate_function_are_explained():
    data = FederatedArrays(([[1, 2], [3]] * 5, [0, 1] * 5), num_clients=2)
    with pytest.raises(DataError, match="collate"):
        data.setup()


@pytest.mark.parametrize("name", ["smape", "rmsle", "cross_entropy", "kl_divergence", "hd95"])
def test_less_of_an_error_is_better(name):
    assert MainMetric.chosen([name]).mode == "min"
    assert MainMetric.chosen(["log_likelihood"]).mode == "max"


def test_targets_of_texts_keep_their_fractions():
    datasets = pytest.importorskip("datasets")
    from fedlightning.datamodules import FederatedText

    notes = datasets.Dataset.from_dict({"a": ["x"] * 10, "text": ["hi"] * 10, "y": [0.5] * 10})
    data = FederatedText(notes, label="y", client="a", seed=0)
    data.setup()
    assert next(data.batches(0, "train"))[1].unique().tolist() == [0.5]
