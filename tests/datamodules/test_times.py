"""The order of times is known, or the data are refused."""

import datetime

import numpy as np
import pandas as pd
import pytest

from fedlightning.datamodules import FederatedTable, TimeSplit
from fedlightning.datamodules.times import sortable_times
from fedlightning.errors import DataError

UTC = datetime.timezone.utc


def order(values, written=None):
    return np.argsort(sortable_times(np.array(values), written), kind="stable").tolist()


@pytest.mark.parametrize(("values", "written"), [
    (["31.01.2025", "01.02.2025", "15.12.2024"], "%d.%m.%Y"),
    (["01/31/2025", "02/01/2025", "12/15/2024"], "%m/%d/%Y"),
    (["31012025", "01022025", "15122024"], "%d%m%Y"),
    (["2025-01-31", "2025-02-01", "2024-12-15"], None),
    (["2025-01-31T08:00", "2025-01-31 09:00:01", "2025-01-31T07:59:59.5"], None),
    (["2025-01-31T08:00Z", "2025-01-31T07:00-05:00", "2025-01-31T10:00+05:00"], None),
    (["2025-01-31 08:00 +0000", "2025-01-31 07:00 -0500", "2025-01-31 10:00 +0500"],
     "%Y-%m-%d %H:%M %z"),
    (["2025/01/31", "2025/02/01", "2024/12/15"], None),
    (["20250131", "20250201", "20241215"], None),
    ([20250131, 20250201, 20241215], None),
    (["visit 03", "visit 10", "visit 02"], None),
    ([0.5, 0.75, -1.0], None),
])  # fmt: skip
def test_times_are_put_in_order(values, written):
    assert order(values, written) == [2, 0, 1]


@pytest.mark.parametrize(("values", "written", "text"), [
    (["31.12.2025", "01.01.2026"], None, r"may begin with the day or the month.*format='%d.%m"),
    (["01/02/2025", "02/01/2025"], None, "may begin with the day or the month"),
    (["12 Jan 2025", "05 Jan 2026"], None, "may begin with the day"),
    (["1.2.2025", "11.2.2025"], None, "are written differently"),
    (["9:00", "10:00"], None, "are written differently"),
    (["2025-01-31", "31.01.2025"], None, "are written differently"),
    (["31122025", "01012026"], None, "looks like a date with the year at its end"),
    ([31122025, 1012026], None, "looks like a date with the year at its end"),
    (["2025-13-01", "2025-01-13"], None, "'2025-13-01' is not a date in ISO 8601"),
    (["2025-01-01T08:00Z", "2025-01-01T08:00"], None, "has a time zone and .* has none"),
    (["31.12.2025", "12/31/2025"], "%d.%m.%Y", "'12/31/2025' is not written as format="),
    ([20251231], "%Y%m%d", "is for times that are text, and these are int64"),
])  # fmt: skip
def test_an_order_that_is_not_known_is_refused(values, written, text):
    with pytest.raises(DataError, match=text):
        sortable_times(np.array(values), written)


def test_moments_of_python_and_pandas():
    noon = datetime.datetime(2025, 1, 31, 12, tzinfo=UTC)
    east = datetime.timezone(datetime.timedelta(hours=5))
    values = np.array([noon, noon.astimezone(east) + datetime.timedelta(hours=1)], object)
    assert order(values[::-1]) == [1, 0]
    days = np.array([datetime.date(2025, 2, 1), datetime.date(2025, 1, 31)], object)
    assert order(days) == [1, 0]
    stamps = pd.Series(pd.to_datetime(["2025-02-01", "2025-01-31"])).to_numpy()
    assert order(stamps) == [1, 0]
    with pytest.raises(DataError, match="has a time zone and"):
        sortable_times(np.array([noon, noon.replace(tzinfo=None)], object))


def test_a_table_is_split_by_german_dates(tmp_path):
    days = pd.date_range("2024-12-20", periods=20)
    frame = pd.DataFrame({"day": days.strftime("%d%m%Y"), "site": "mayo", "x": range(20)})
    frame.to_csv(tmp_path / "a.csv", index=False)
    split = TimeSplit("day", test=0.25, format="%d%m%Y")
    data = FederatedTable(tmp_path / "a.csv", client="site", split=split)
    data.setup()
    assert data.features == ("x",)
    assert sorted(data.indices(0, "test")) == [15, 16, 17, 18, 19]  # rows are in order of time
    data = FederatedTable(tmp_path / "a.csv", client="site", split=TimeSplit("day"))
    with pytest.raises(DataError, match=r"TimeSplit, column 'day': .*year at its end"):
        data.setup()
