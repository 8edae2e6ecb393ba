"""Which exit code and which line an exception becomes."""

import errno
import pickle

import pytest
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.exceptions import SIGTERMException

from fedlightning.cli.exit_codes import Failure, diagnose
from fedlightning.cli.run_watch import RunMonitor
from fedlightning.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EnvironmentFailure,
    FederationError,
)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("a is wrong"), 2, "a is wrong"),
        (DataError("a is wrong"), 3, "a is wrong"),
        (CheckpointError("a is wrong"), 4, "a is wrong"),
        (FederationError("a is wrong"), 5, "a is wrong"),
        (EnvironmentFailure("a is wrong"), 6, "a is wrong"),
        (MisconfigurationException("two\nlines"), 2, "two lines"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 6, "Permission denied: runs"),
        (OSError(errno.ENOSPC, "No space left on device"), 6, "No space left on device"),
        (MemoryError(), 6, "out of memory: the machine has none left; lower data.batch_size."),
        (OutOfMemoryError("CUDA out"), 6, "out of memory: CUDA out; lower data.batch_size."),
        (ModuleNotFoundError("`rich` is not installed"), 6, "`rich` is not installed"),
        (RuntimeError("PytorchStreamWriter failed"), 6, "cannot write a checkpoint, no space left"),
        (ZeroDivisionError("oops"), 1, "internal: ZeroDivisionError: oops; FEDLIGHTNING_DEBUG=1"),
        (pickle.UnpicklingError("x"), 1, "internal: UnpicklingError: x; FEDLIGHTNING_DEBUG=1"),
        (SystemExit("text"), 1, "text"),
    ],
)
def test_an_error_has_its_exit_code(error, code, text):
    failure = diagnose(error)
    assert failure.exit_code == code
    assert failure.text.startswith(text)
    assert failure.is_error


def test_ends_that_are_no_errors():
    assert diagnose(SystemExit(0)) == Failure(0)
    assert diagnose(SystemExit(None)) == Failure(0)
    assert diagnose(KeyboardInterrupt()) == Failure(130, "interrupted.", is_error=False)
    assert diagnose(SIGTERMException()) == Failure(143, "interrupted.", is_error=False)
    assert diagnose(SystemExit(143)) == Failure(143, "interrupted.", is_error=False)


def test_an_interrupt_is_told_from_the_exit_that_lightning_makes_of_it():
    error = SystemExit(1)
    error.__context__ = KeyboardInterrupt()
    assert diagnose(error).exit_code == 130


def test_an_error_of_ours_is_found_behind_what_wrapped_it():
    error = ValueError("wrapped")
    error.__cause__ = DataError("client 3 has 0 samples")
    assert diagnose(error) == Failure(3, "client 3 has 0 samples")


def test_files_are_a_clients_own_business_while_it_works_but_a_full_disk_is_not():
    watch = RunMonitor()
    watch.client = 3
    missing = FileNotFoundError(errno.ENOENT, "No such file", "x.png")
    assert diagnose(missing, watch) == Failure(
        5, "client 3: FileNotFoundError: [Errno 2] No such file: 'x.png'"
    )
    assert diagnose(OSError(errno.ENOSPC, "No space left"), watch).exit_code == 6


def test_a_line_stays_a_line():
    failure = diagnose(ConfigError("word " * 1000))
    assert len(failure.text) < 1000
    assert "\n" not in diagnose(ConfigError("a\n  b")).text
