import math
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from fedlightning.errors import ConfigError
from fedlightning.reporting.client_records import ClientRecord
from fedlightning.reporting.figures.save import (
    clients_figure,
    curves_figure,
    finetuning_figure,
    partition_figure,
    save_figure,
)
from fedlightning.reporting.figures.style import spaced
from fedlightning.reporting.finetuning_curve import EpochRecord


def records(count, gain=0.25):
    """Accuracies before rise evenly from 0 to 0.5."""
    before = np.linspace(0, 0.5, count)
    return [ClientRecord(i, 80, 20, b, b + gain, 1.0, 0.5) for i, b in enumerate(before)]


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_up_to_120_clients_are_dumbbells_in_the_order_of_the_accuracy_after():
    figure = clients_figure([*records(3), ClientRecord(9, 80, 20, 0.5, 0.1, 1, 1)])
    [ax] = figure.axes
    after = np.concatenate([line.get_ydata() for line in ax.lines if line.get_label() == "after"])
    assert after == pytest.approx([25, 50, 75])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["9", "0", "1", "2"]


def test_a_client_that_lost_is_told_apart():
    figure = clients_figure([*records(3), ClientRecord(9, 80, 20, 0.5, 0.1, 1, 1)])
    assert legend(figure) == ["before", "after", "after, worse"]
    assert "3 better · 1 worse" in texts(figure)[0]


def test_more_than_120_clients_are_two_sorted_curves():
    [ax] = clients_figure(records(121)[::-1]).axes
    before, after = ax.lines[0].get_ydata(), ax.lines[1].get_ydata()
    assert len(before) == len(after) == 121
    assert (np.diff(before) >= 0).all()
    assert (np.diff(after) >= 0).all()


@pytest.mark.parametrize("count", [20, 1000])
def test_the_means_are_labelled_and_the_worst_tenth_is_marked(count):
    figure = clients_figure(records(count))
    assert texts(figure)[1:] == ["mean before 25.0 %", "mean after 50.0 %"]
    assert legend(figure)[-1] == "worst tenth after (p10: 30.0 %)"


def test_the_subtitle_counts_clients_without_test_data():
    untested = ClientRecord(9, 80, 0, math.nan, math.nan, math.nan, math.nan)
    subtitle = texts(clients_figure([*records(4), untested]))[0]
    assert subtitle == (
        "4 clients: mean 25.0 % → 50.0 % (+25.0 points) · 4 better · 1 without test data left out"
    )


def test_no_tested_client_is_said_in_words():
    assert "no client has test data" in texts(clients_figure([]))


def test_few_clients_and_classes_are_dots_with_areas_in_proportion_to_counts():
    figure = partition_figure([[100, 0], [50, 25]])
    dots = figure.axes[1].collections[0]
    assert dots.get_offsets().tolist() == [[0, 0], [1, 0], [1, 1]]
    sizes = dots.get_sizes()
    assert sizes / sizes.max() == pytest.approx([1, 0.5, 0.25])


@pytest.mark.parametrize("shape", [(100, 10), (100, 100), (61, 2), (5, 61)])
def test_many_clients_or_classes_are_a_heat_map(shape):
    table = np.zeros(shape, dtype=np.int64)
    table[1, 0] = 7
    [image] = partition_figure(table).axes[1].images
    assert image.get_array().shape == shape[::-1]
    assert image.get_array()[0, 1] == 7
    assert image.get_array().mask[0, 0]


def test_the_partitions_subtitle_has_the_numbers():
    figure = partition_figure([[5, 0], [0, 7], [3, 3]])
    assert texts(figure)[0] == (
        "3 clients · 5 to 7 examples each, median 6 · 1.3 of 2 classes each"
    )


@pytest.mark.parametrize(
    "table", [np.zeros((0, 10), int), np.zeros(3, int), [[0.5]], [[-1]], [[True]]]
)
def test_what_is_no_table_of_counts_is_refused(table):
    with pytest.raises(ConfigError, match=r"counts of shape \(num_clients, num_classes\)"):
        partition_figure(table)


def test_a_client_without_data_is_drawn():
    partition_figure([[0, 0], [0, 0]])


def test_accuracies_and_losses_have_panels_of_their_own():
    figure = curves_figure([0, 1], {"train/loss": [2.0, 1.0], "global/acc": [0.1, 0.4]})
    accuracy, loss = figure.axes
    assert accuracy.lines[0].get_ydata() == pytest.approx([10, 40])
    assert loss.lines[0].get_ydata() == pytest.approx([2, 1])
    assert texts(figure)[1:] == ["global/acc  40.0 %", "train/loss  1"]


def epochs(*means, val=math.nan):
    return [
        EpochRecord.of(epoch, [(mean - 0.1, val), (mean + 0.1, val)])
        for epoch, mean in enumerate(means)
    ]


def test_the_finetuning_figure_has_mean_band_and_tenth_percentile():
    figure = finetuning_figure(epochs(0.2, 0.5, 0.6))
    [ax] = figure.axes
    mean, p10 = (line.get_ydata() for line in ax.lines)
    assert mean == pytest.approx([20, 50, 60])
    assert p10 == pytest.approx([12, 42, 52])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((10, 70))
    assert texts(figure)[1:] == ["mean  60.0 %", "tenth percentile  52.0 %"]


def test_validation_data_and_other_views_have_lines_of_their_own():
    others = {"held_out": epochs(0.4, 0.6), "ood": epochs(0.1, 0.2)}
    figure = finetuning_figure(epochs(0.2, 0.5, val=0.3), others)
    lines = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert lines[2:] == [pytest.approx(ys) for ys in ([30, 30], [40, 60], [10, 20])]
    assert {"mean, held-out clients  60.0 %", "mean, ood  20.0 %"} <= set(texts(figure))


def test_a_curve_that_nobody_has_tested_is_drawn():
    untested = [EpochRecord.of(epoch, [(math.nan, math.nan)]) for epoch in range(2)]
    assert finetuning_figure(untested).axes[0].lines[:] == []


def test_a_round_without_the_metric_is_skipped():
    figure = curves_figure([0, 1, 2], {"global/acc": [0.1, math.nan, 0.3]})
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 3], "rounds done"


def test_curves_of_nothing_are_drawn():
    curves_figure([], {})
    curves_figure([0], {"acc": [math.nan]})


def test_a_metric_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="'acc' has 1 values for 2 rounds"):
        curves_figure([0, 1], {"acc": [0.5]})


def test_labels_that_do_not_collide_stay_where_they_are():
    assert spaced([1.0, 9.0, 5.0], gap=2.0) == [1.0, 9.0, 5.0]


def test_labels_that_collide_move_apart_around_their_middle():
    assert spaced([5.0, 5.0, 4.0], gap=3.0) == pytest.approx([14 / 3, 23 / 3, 5 / 3])


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        save_figure(clients_figure(records(20)), tmp_path / name)
    a = (tmp_path / "a.png").read_bytes()
    assert a == (tmp_path / "b.png").read_bytes()
    assert b"matplotlib" not in a
    assert a[12:24] == b"IHDR" + (1350).to_bytes(4, "big") + (690).to_bytes(4, "big")


@pytest.mark.parametrize("draw", [lambda: clients_figure(records(500)), lambda: clients_figure([])])
def test_nothing_global_changes(draw, tmp_path):
    with mpl.rc_context({"axes.grid": True, "font.size": 17.0}):
        before = dict(mpl.rcParams)
        save_figure(draw(), tmp_path / "figure.png")
        assert dict(mpl.rcParams) == before


def test_a_users_settings_do_not_reach_the_figure(tmp_path):
    save_figure(clients_figure(records(5)), tmp_path / "plain.png")
    with mpl.rc_context({"axes.facecolor": "black", "font.size": 30.0}):
        save_figure(clients_figure(records(5)), tmp_path / "styled.png")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def test_the_module_is_imported_without_matplotlib():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import fedlightning.reporting, fedlightning.reporting.figures.save\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
