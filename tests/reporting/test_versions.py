import subprocess
import sys
import threading

import pytest

from fedlightning.errors import EnvironmentFailure
from fedlightning.storage.run_folders import claim_version, next_version

CLAIM = """
import sys, time, pathlib
from fedlightning.storage.run_folders import claim_version
root, go = map(pathlib.Path, sys.argv[1:])
print("ready", flush=True)
while not go.exists():
    time.sleep(0.0005)
print(claim_version(root))
"""


def test_eight_processes_that_start_together_get_eight_folders(tmp_path):
    root, go = tmp_path / "logs", tmp_path / "go"
    command = [sys.executable, "-c", CLAIM, str(root), str(go)]
    crowd = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    for process in crowd:
        assert process.stdout.readline() == "ready\n"
    go.touch()
    claimed = [int(process.communicate(timeout=30)[0]) for process in crowd]
    assert sorted(claimed) == list(range(8))
    assert {entry.name for entry in root.iterdir()} == {f"version_{n}" for n in range(8)}


def test_sixteen_threads_get_sixteen_folders(tmp_path):
    barrier, claimed = threading.Barrier(16), []

    def claim():
        barrier.wait()
        claimed.append(claim_version(tmp_path))

    threads = [threading.Thread(target=claim) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(16))


def test_the_next_version_follows_the_highest_and_ignores_other_names(tmp_path):
    for name in ("version_2", "version_10", "version_x", "version_11_old", "checkpoints"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == 11


def test_the_next_version_of_a_folder_that_does_not_exist_is_zero_and_makes_nothing(tmp_path):
    assert next_version(tmp_path / "logs") == 0
    assert not (tmp_path / "logs").exists()


def test_a_root_that_is_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "logs").touch()
    with pytest.raises(EnvironmentFailure, match=r"cannot create .*logs/version_0"):
        claim_version(tmp_path / "logs")
