"""The exit code and the one-line message for every way a command can end."""

from __future__ import annotations

import errno
import re
import signal
import traceback
from dataclasses import dataclass
from typing import Any

from fedlightning.core.tracebacks import causes, place_of, raised_by_user
from fedlightning.errors import FedLightningError, WorkerLost

__all__ = ["Failure", "diagnose", "what_is_wrong", "while_restoring"]

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_MOST = 800
_UNKNOWN_METRIC = (
    r"conditioned on metric `(.*?)` which is not available.*(any of the following: .*)",
    r"ModelCheckpoint\(monitor='(.*?)'\)` could not find .*?(the returned metrics: \[.*?\])",
)


@dataclass(frozen=True)
class Failure:
    """The way a command ended.

    Args:
        exit_code: The exit code of the process.
        text: The line to print; empty for none.
        is_error: Whether ``error: `` precedes it.
    """

    exit_code: int
    text: str = ""
    is_error: bool = True

    @property
    def leaves_work(self) -> bool:
        """Whether the run may have saved rounds to resume from."""
        return self.is_error and self.exit_code in (1, 5, 6)


def diagnose(error: BaseException, watch: Any = None) -> Failure:
    """Return exit code and message for a command that raised ``error``.

    Args:
        error: The exception.
        watch: The run's :class:`~fedlightning.cli.run_watch.RunMonitor`, if there is one yet.

    Example:
        >>> diagnose(PermissionError(13, "Permission denied", "runs"))
        Failure(exit_code=6, text='Permission denied: runs', is_error=True)
    """
    chain = list(causes(error))
    interrupted = watch.interruption() if watch is not None else "interrupted."
    # Lightning turns Ctrl+C into `sys.exit(1)`, with the interrupt as its context
    if any(isinstance(link, KeyboardInterrupt) for link in chain):
        return Failure(128 + signal.SIGINT, interrupted, is_error=False)
    if isinstance(error, SystemExit):
        if type(error).__name__ == "SIGTERMException" or error.code == 128 + signal.SIGTERM:
            return Failure(128 + signal.SIGTERM, interrupted, is_error=False)
        return _exit(error)
    ours = next((link for link in chain if isinstance(link, FedLightningError)), None)
    if isinstance(ours, WorkerLost) and ours.exit_code > 128:  # a signal to another worker
        return Failure(ours.exit_code, interrupted, is_error=False)
    if ours is not None:
        client_failed = getattr(ours, "failure", None) is not None
        return (client_failed and _machine_failure_below(ours)) or _failure(
            ours.exit_code, _with_reference(ours, chain)
        )
    if watch is not None and watch.checkpoint and while_restoring(error):
        return _failure(4, f"ckpt_path={watch.checkpoint!r}: {what_is_wrong(error)}")
    where = watch.where if watch is not None else ""
    training = watch is not None and watch.client is not None
    for link in chain:
        if found := _machine_failure(link, training):
            return found
    if found := _library_failure(error):
        return found
    described = f"{type(error).__name__}: {error}".rstrip(": ")
    if training or (watch is not None and watch.trainer is not None and raised_by_user(error)):
        return _failure(5, f"{where}: {described}{place_of(error)}".removeprefix(": "))
    if raised_by_user(error):
        return _failure(2, f"{described}{place_of(error)}")
    return _failure(
        1, f"internal: {described}{place_of(error)}; FEDLIGHTNING_DEBUG=1 shows the traceback."
    )


def _exit(error: SystemExit) -> Failure:
    if error.code is None or isinstance(error.code, int):
        return Failure(error.code or 0)
    return _failure(1, str(error.code))


def _machine_failure(error: BaseException, training: bool) -> Failure | None:
    """Return a failure of memory, disk, files or packages.

    While a client trains, an ``OSError`` counts only if the disk is the cause.
    """
    name, module = type(error).__name__, type(error).__module__
    text = str(error)
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return _failure(
            6, f"out of memory: {text or 'the machine has none left'}; lower data.batch_size."
        )
    if isinstance(error, RuntimeError) and re.search("PytorchStreamWriter|inline_container", text):
        return _failure(6, f"cannot write a checkpoint, no space left on the device? {text}")
    if isinstance(error, OSError) and (not training or error.errno in _DISK):
        where = f": {error.filename}" if error.filename else ""
        return _failure(6, f"{error.strerror or text or name}{where}")
    if isinstance(error, ModuleNotFoundError) and not training and not raised_by_user(error):
        return _failure(6, text)
    if module.partition(".")[0] == "wandb":
        return _failure(6, f"wandb: {text}; WANDB_MODE=offline logs without key and network.")
    return None


def _machine_failure_below(error: BaseException) -> Failure | None:
    """Return a failure of the machine that made a client fail."""
    found = (_machine_failure(link, training=True) for link in list(causes(error))[1:])
    return next(filter(None, found), None)


def _library_failure(error: BaseException) -> Failure | None:
    """Return what Lightning or OmegaConf reports about a setting."""
    name, module = type(error).__name__, type(error).__module__.partition(".")[0]
    text = str(error)
    if module == "omegaconf":
        key = _short_key(getattr(error, "full_key", "") or "")
        first = re.sub(r"\w+ raised while resolving interpolation: ", "", text).partition("\n")[0]
        return _failure(2, f"{key}: bad reference: {first}".removeprefix(": "))
    for pattern in _UNKNOWN_METRIC:
        if found := re.search(pattern, text):
            hint = " data.val_fraction holds validation data out." if "val" in found[1] else ""
            return _failure(
                2, f"{found[1]} is never logged, so it cannot be monitored: {found[2]}.{hint}"
            )
    if name == "MisconfigurationException":
        return _failure(2, text)
    return None


def _with_reference(error: FedLightningError, chain: list[BaseException]) -> str:
    """Return the text of a FedLightningError, with the key of the reference that caused it."""
    text = str(error)
    keys = (str(getattr(link, "full_key", None) or "") for link in chain)
    key = next(filter(None, keys), "")
    return f"{_short_key(key)}: {text}" if key else text


def _short_key(full_key: str) -> str:
    """Return a config key as users write it: without the command's name and ``init_args``."""
    return re.sub(r"\.init_args\b", "", full_key.partition(".")[2] or full_key)


def _failure(exit_code: int, text: str) -> Failure:
    line = " ".join(text.split())
    return Failure(exit_code, line if len(line) <= _MOST else f"{line[:_MOST]} ...")


_OTHER_SHAPE = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\)"
    r".*?torch\.Size\(\[(.*?)\]\)",
    re.DOTALL,
)


_OTHER_KEYS = re.compile(r"((?:Missing|Unexpected) key\(s\) in state_dict: .*)")


_OBJECT = re.compile(r"Unsupported global: GLOBAL (\S+)")


def while_restoring(error: BaseException) -> bool:
    """Whether Lightning was reading a checkpoint, or restoring model and callbacks from one."""
    frames = traceback.extract_tb(error.__traceback__)
    names = [frame.name for frame in frames if frame.filename.endswith("checkpoint_connector.py")]
    return any(re.search("restore|resume", name) for name in names)


def what_is_wrong(error: BaseException) -> str:
    """Return what is wrong with a checkpoint, from the error that restoring it raised.

    Example:
        >>> what_is_wrong(KeyError("pytorch-lightning_version"))
        'not a fedlightning checkpoint: no run wrote it.'
    """
    text = str(error)
    if found := _OTHER_SHAPE.search(text):
        return f"{found[1]} is ({found[2]}) in the checkpoint, vs ({found[3]}) in the model."
    if found := _OTHER_KEYS.search(text):
        return f"it belongs to another network: {found[1]}"
    if found := _OBJECT.search(text):
        return f"it holds an object of {found[1]}; only tensors and plain values are loaded."
    if isinstance(error, KeyError) and "pytorch-lightning_version" in text:
        return "not a fedlightning checkpoint: no run wrote it."
    return f"it cannot be read as a checkpoint ({type(error).__name__}: {text.partition('. ')[0]})."
