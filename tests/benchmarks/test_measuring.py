"""What a command costs is measured over all the processes that it starts."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.measuring import Measured, run_measured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GRANDCHILD = """
import time
block = b"x" * (100 * 2**20)
while time.process_time() < 0.5:
    pass
time.sleep(0.5)
"""
CHILD = f"""
import json, subprocess, sys, time
marks = [time.time()]
subprocess.run([sys.executable, "-c", {GRANDCHILD!r}], check=True)
marks += [time.time(), time.time() + 0.0]
print("noise")
print(json.dumps({{"marks": marks, "first_step": marks[0], "steps": 3}}))
"""


@pytest.fixture(scope="module")
def measured() -> Measured:
    return run_measured([sys.executable, "-c", CHILD])


def test_cpu_of_a_grandchild_counts(measured: Measured) -> None:
    assert measured.cpu >= 0.5
    assert measured.round_cpus[0] >= 0.45
    assert measured.round_cpus[1] < 0.2


def test_memory_of_a_grandchild_counts(measured: Measured) -> None:
    assert measured.peak_memory_mb > 100


def test_walls_are_the_distances_of_the_marks(measured: Measured) -> None:
    assert measured.round_walls[0] >= 1.0
    assert 0 < measured.start_up < measured.wall


def test_the_last_object_printed_is_the_result(measured: Measured) -> None:
    assert measured.result["steps"] == 3
    assert measured.returncode == 0


def test_an_orphan_is_waited_for_and_counted() -> None:
    orphan = "import time\nwhile time.process_time() < 0.4: pass"
    parent = (
        "import subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True)"
    )
    assert run_measured([sys.executable, "-c", parent]).cpu >= 0.4


def test_a_command_that_fails_leaves_its_last_words() -> None:
    measured = run_measured([sys.executable, "-c", "raise SystemExit('no such peer')"])
    assert (measured.returncode, measured.result) == (1, {})
    assert measured.error == "no such peer"


def test_a_command_that_takes_too_long_is_killed() -> None:
    measured = run_measured([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.5)
    assert measured.returncode == -9
    assert measured.wall < 30


def test_cpu_between_samples_is_in_proportion() -> None:
    samples = [(0.0, 0.0), (1.0, 2.0), (3.0, 3.0)]
    result = json.loads('{"marks": [0.5, 1.0, 2.0, 9.0]}')
    run = Measured(3.0, 3.0, 1.0, 0, result, "", 0.0, samples)
    assert run.round_cpus == [1.0, 0.5, 0.5]
