"""Names of clients and groups stay as a file writes them."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from fedlightning.core.client_names import resolve_clients
from fedlightning.datamodules import FederatedFolders, FederatedTable, GroupSplit
from fedlightning.errors import ConfigError, DataError
from fedlightning.personalization.on_demand import chosen_clients, client_words
from fedlightning.reporting.client_records import ClientRecord, read_clients_csv, write_clients_csv

NAMES = ["NA", "null", "nan", "None", "001", "1e5", "1.0", "true", "a b", "köln/süd", "a,b", " x"]


def write(path, names, per_name=5):
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["site", "patient", "x", "y"])
        for n in range(per_name * len(names)):
            rows.writerow([names[n % len(names)], names[n // 2 % len(names)], n, "ab"[n // 20 % 2]])
    return path


def test_a_table_keeps_them(tmp_path):
    path = write(tmp_path / "a.csv", NAMES)
    data = FederatedTable(path, client="site", features=["x"], seed=0)
    assert data.client_names == tuple(sorted(NAMES))
    data.setup()
    own = data.indices(data.client_names.index("NA"), "train")
    assert set(own % len(NAMES)) == {NAMES.index("NA")}


def test_groups_of_a_split_keep_them(tmp_path):
    path = write(tmp_path / "a.csv", ["1", "01", "NA", "x"])
    split = GroupSplit("patient", test=0.5)
    data = FederatedTable(path, client="site", features=["x"], split=split, seed=0)
    data.setup()
    assert set(data.pooled.train.column("patient")) == {"1", "01", "NA", "x"}


def test_whole_numbers_are_in_the_order_of_numbers(tmp_path):
    path = write(tmp_path / "a.csv", ["10", "9", "-1"])
    assert FederatedTable(path, client="site", features=["x"]).client_names == ("-1", "9", "10")


def test_an_empty_name_is_missing(tmp_path):
    path = write(tmp_path / "a.csv", ["x", ""])
    with pytest.raises(DataError, match="example 1 has no owner"):
        FederatedTable(path, client="site", features=["x"])


def test_texts_keep_them(tmp_path):
    pytest.importorskip("datasets")
    from fedlightning.datamodules import FederatedText

    path = write(tmp_path / "a.csv", NAMES)
    data = FederatedText(str(path), text="patient", client="site", seed=0)
    assert data.client_names == tuple(sorted(NAMES))
    assert set(data._sources[0][0]["patient"]) == set(NAMES)
    lines = [json.dumps({"site": name, "text": "a\u2028b"}, ensure_ascii=False) for name in NAMES]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = FederatedText(str(tmp_path / "a.jsonl"), client="site", seed=0)
    assert data.client_names == tuple(sorted(NAMES))


@pytest.mark.parametrize("name", [*NAMES, "[x]", "3-7", "~"])
def test_a_command_line_may_name_each(name):
    names = sorted([*NAMES, "[x]", "3-7", "~"])
    assert chosen_clients(name, names) == [names.index(name)]
    if name == name.strip():  # spaces around the words of a list are not theirs
        words = client_words(f'"{name}",mayo')
        assert resolve_clients(words, [*names, "mayo"]) == [names.index(name), len(names)]


def test_a_word_with_leading_zeros_is_no_id_of_a_client_with_another_name():
    with pytest.raises(ConfigError, match="'0012' is neither the name"):
        chosen_clients("0012", [f"site {n}" for n in range(20)])
    assert chosen_clients("12", [f"site {n}" for n in range(20)]) == [12]


def test_a_table_of_clients_reads_back_any_name(tmp_path):
    nan = float("nan")
    records = [
        ClientRecord(n, 1, 1, nan, nan, 0.5, 0.5, name=name)
        for n, name in enumerate([*NAMES, "two\nlines", "a\u2028b"])
    ]
    write_clients_csv(tmp_path / "clients.csv", records)
    assert [r.name for r in read_clients_csv(tmp_path / "clients.csv")] == [r.name for r in records]


def images(root, client, name="cat"):
    from PIL import Image

    (root / client / name).mkdir(parents=True)
    for at in range(3):
        Image.new("RGB", (4, 4), (at, 0, 0)).save(root / client / name / f"{at}.png")


def test_folders_keep_them_and_none_is_lost_in_silence(tmp_path):
    for client in ("NA", "001", "a b", "köln"):
        images(tmp_path / "one", client)
    data = FederatedFolders(tmp_path / "one")
    assert data.client_names == ("001", "NA", "a b", "köln")
    for part in ("train", "test", "val"):
        images(tmp_path / "two" / part, "mayo")
    with pytest.raises(ConfigError, match="has the folders test, train, val: it needs one per"):
        FederatedFolders(tmp_path / "two")
    images(tmp_path / "three" / "train", "mayo")
    images(tmp_path / "three" / "test", "ucla")
    with pytest.warns(UserWarning, match="clients that do not train, and are left out: ucla"):
        FederatedFolders(tmp_path / "three")


def test_a_picture_shows_dollars_as_they_are(tmp_path):
    from fedlightning.reporting.figures.clients import clients_figure

    records = [
        ClientRecord(n, 1, 1, 0.5, 0.5, 1.0, 1.0, name=name)
        for n, name in enumerate(["$x$", r"$\frac$"])
    ]
    figure = clients_figure(records)
    figure.savefig(tmp_path / "a.png")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["$x$", r"$\frac$"]


def test_a_frame_of_pandas_keeps_the_types_that_it_has():
    frame = pd.DataFrame({"site": np.repeat([2, 10], 5), "x": range(10)})
    assert FederatedTable(frame, client="site").client_names == ("2", "10")
