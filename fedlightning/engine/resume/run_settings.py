"""The settings that a resumed run must share with the run that wrote the checkpoint."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch.optim import Optimizer

from fedlightning.core.parts import without
from fedlightning.datamodules import FederatedDataModule
from fedlightning.errors import CheckpointError
from fedlightning.federation.schedule import Schedule
from fedlightning.federation.settings import Federation
from fedlightning.models.base import named_parts
from fedlightning.storage.checkpoint_reader import loop_state
from fedlightning.storage.client_store import holds_states

__all__ = [
    "Settings",
    "optimizer_settings",
    "refuse_changes",
    "settings_that_matter",
    "warn_of_changes",
]

Settings = dict[str, str]
"""Values as text, by the names of the settings."""

# Where data is, how many processes read it, what is printed: no result depends on these.
_FREE = {"root", "download", "num_workers", "max_epochs", "devices", "verbose", "path", "data_dir"}
_FREE |= {"cache_size", "eval_clients", "check_data"}
# Arguments of constructors that a digest or another setting stands for.
_COVERED = {"seed", "num_clients", "num_classes", "partition", "val_fraction", "held_out_clients"}
_MAX_LENGTH = 400
_SCHEDULE_DIGEST = "federation.schedule (digest)"
_NONE = (None, "None")
_OF_DATA = ("partition:", "dataset", "names of clients:")


def settings_that_matter(
    trainer: pl.Trainer,
    federation: Federation,
    module: pl.LightningModule,
    data: FederatedDataModule,
    seed: int,
) -> Settings:
    """Return the settings on which the bits of a result depend.

    What may change when a run is resumed is left out: ``max_epochs``, the number of workers,
    loggers, callbacks, paths, how often validation runs.

    Args:
        trainer: The trainer.
        federation: The federation's settings.
        module: The clients' module, as the user built it.
        data: The clients' data, set up.
        seed: The run's seed.
    """
    sampler = federation.sampler
    threads = federation.num_threads
    settings: dict[str, Any] = {
        "seed": seed,
        "federation.algorithm": federation.algorithm,
        "federation.aggregator": federation.aggregator,
        "federation.compression": federation.compression,
        "federation.uplink": federation.uplink or None,
        "federation.schedule": federation.schedule,
        _SCHEDULE_DIGEST: _digest(federation.schedule),
        "federation.optimizer_state": federation.optimizer_lifetime,
        "federation.privacy": federation.privacy,
        "federation.buffers": federation.buffers,
        "federation.cohort_size": federation.cohort_count(len(data.training_clients)),
        "federation.local_epochs": federation.local_epochs,
        "federation.local_steps": federation.local_steps,
        "federation.head": federation.head,
        "federation.channels_last": federation.channels_last,
        "federation.clients_per_kernel": federation.clients_per_kernel,
        "federation.sampler": None
        if sampler is None
        else f"{type(sampler).__name__}{_plain_values(vars(sampler))}",
        "federation.leave_out": sorted(federation.leave_out) or None,
        "torch threads": threads if threads is not None else torch.get_num_threads(),
        **data.digests(),
        "data.held_out_clients": data.held_out_digest(),
        "data": type(data).__name__,
        "trainer.precision": trainer.precision,
        "trainer.accelerator": trainer.strategy.root_device.type,
        "trainer.gradient_clip_val": trainer.gradient_clip_val,
        "trainer.gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "trainer.limit_train_batches": trainer.limit_train_batches,
    }
    if federation.clients_per_kernel > 1:  # the last bits depend on which clients share a kernel
        settings["trainer.devices"] = trainer.world_size
    arguments = {k: v for k, v in _arguments(data).items() if k not in _COVERED}
    settings |= {f"data.{name}": value for name, value in arguments.items()}
    chosen = {**_arguments(module), **module.hparams}
    settings |= {f"model.{name}": value for name, value in _plain_values(chosen).items()}
    settings["parts"] = named_parts(module) or None
    return {name: _format_value(value) for name, value in settings.items()}


def optimizer_settings(optimizers: Iterable[Optimizer]) -> Settings:
    """Return type and settings of optimizers that have not stepped yet.

    Example:
        >>> weights = [torch.nn.Parameter(torch.ones(1))]
        >>> optimizer_settings([torch.optim.SGD(weights, lr=0.5)])["optimizer"][:16]
        'SGD(dampening=0,'
    """
    texts = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            plain = {k: v for k, v in _plain_values(group).items() if k != "params"}
            if "initial_lr" in plain:  # a scheduler has changed the other one
                plain["lr"] = plain.pop("initial_lr")
            inner = ", ".join(f"{name}={_format_value(plain[name])}" for name in sorted(plain))
            texts.append(f"{type(optimizer).__name__}({inner})")
    return {"optimizer": ", ".join(texts)}


def refuse_changes(saved: Mapping[str, Any], present: Settings) -> None:
    """Check that two runs have the same settings; a name that only one of them has is ignored.

    Raises:
        CheckpointError: They differ; all differences are listed.

    Example:
        >>> refuse_changes({"seed": "0", "gone": "1"}, {"seed": "0"})
        >>> refuse_changes({"seed": "0"}, {"seed": "5"})
        Traceback (most recent call last):
        fedlightning.errors.CheckpointError: ... from the checkpoint (seed: 0 -> 5). Restore ...
    """
    if changed := _changes(saved, present):
        of_data = any(text.startswith(_OF_DATA) for text in changed)
        what = "data or settings differ" if of_data else "settings differ"
        raise CheckpointError(
            f"cannot resume: {what} from the checkpoint ({'; '.join(changed)}). Restore them, or "
            "load only the weights with load_from_checkpoint."
        )


def warn_of_changes(
    checkpoint: Mapping[str, Any],
    path: Any,
    federation: Federation,
    module: pl.LightningModule | None,
    data: FederatedDataModule | None,
) -> None:
    """Warn if a checkpoint is evaluated under settings that change its meaning.

    Args:
        checkpoint: The content of the file.
        path: The file.
        federation: The federation's settings.
        module: The clients' module, as the user built it, if known.
        data: The clients' data, set up, if known.
    """
    extra = loop_state(checkpoint).get("extra")
    if not isinstance(extra, Mapping):  # only weights
        return
    settings = extra["settings"]
    heads = settings.get("federation.head"), settings.get("model.head")
    saved = {**settings, "head": next((head for head in heads if head not in _NONE), "head")}
    present: Settings = {
        "federation.algorithm": _format_value(federation.algorithm),
        "head": _format_value(federation.head or getattr(module, "head_prefix", "head")),
    }
    if data is not None and holds_states(extra["personal"]):
        present |= data.digests()  # which state belongs to which client
    if changed := _changes(saved, present):
        rank_zero_warn(
            f"{path} was trained with other settings than those used to evaluate it: "
            f"{'; '.join(changed)}. Using its weights anyway."
        )


def _changes(saved: Mapping[str, Any], present: Settings) -> list[str]:
    saved = {"federation.schedule": "None", **saved}  # releases before schedules had rounds
    if "federation.algorithm" in saved:
        saved = {**saved, "federation.algorithm": _as_now_shown(str(saved["federation.algorithm"]))}
    changed = {
        name: f"{name}: {value} -> {present[name]}"
        for name, value in saved.items()
        if name in present and str(value) != present[name]
    }
    if "federation.schedule" in changed:  # its text says more
        changed.pop(_SCHEDULE_DIGEST, None)
    return list(changed.values())


_OWN_NORMS = re.compile(
    r"(?:share='(\w+)', )?((?:weights='\w+', |keep=\w+, |sums='\w+', )*)own_norms=True"
)


def _as_now_shown(algorithm: str) -> str:
    """Return the text of an algorithm in a checkpoint as this version would have written it.

    Example:
        >>> _as_now_shown("FedBABU(share='body') + FedBN(weights='uniform', own_norms=True)")
        "FedBABU(share='body') + FedBN(share='full - norm', weights='uniform')"
    """

    def share(found: re.Match[str]) -> str:
        others = found[2].removesuffix(", ")
        text = f"share='{without(found[1] or 'full', 'norm')}'"
        return f"{text}, {others}" if others else text

    return _OWN_NORMS.sub(share, algorithm).replace("ServerTraining(", "ServerTrainingConfig(")


def _arguments(thing: Any) -> dict[str, Any]:
    """Return the plain arguments of a constructor that the object has as attributes."""
    names = {
        name
        for kind in type(thing).__mro__
        if "__init__" in vars(kind) and kind.__module__.partition(".")[0] != "pytorch_lightning"
        for name in inspect.signature(vars(kind)["__init__"]).parameters
    }
    return _plain_values({name: vars(thing)[name] for name in sorted(names) if name in vars(thing)})


def _plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in values.items()
        if name not in _FREE and not name.startswith("_") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _digest(schedule: Schedule | None) -> str | None:
    """Return a digest of a schedule's whole text, which may be long, and of its files."""
    if schedule is None:
        return None
    digest = hashlib.sha256(str(schedule).encode())
    for path in schedule.files():
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def _format_value(value: Any) -> str:
    """Return a value as text: the same for 1 and 1.0, for a list and a tuple."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_format_value(item) for item in value)}]"
    text = str(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."
