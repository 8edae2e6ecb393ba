"""The settings that a resumed run must share with the run that it goes on with."""

from __future__ import annotations

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
from fedlightning.federation.settings import Federation
from fedlightning.models.base import named_parts

__all__ = [
    "Settings",
    "optimizer_settings",
    "refuse_changes",
    "settings_that_matter",
    "warn_of_changes",
]

Settings = dict[str, str]
"""Values as they are shown, by the names under which they are set."""

# Where data lie, how many processes read them, what is shown: no result depends on these.
_FREE = {"root", "download", "num_workers", "max_epochs", "devices", "verbose", "path", "data_dir"}
_FREE |= {"cache_size", "eval_clients", "check_data"}
# A constructor's arguments that a digest or a setting of its own stands for.
_ELSEWHERE = {"seed", "num_clients", "num_classes", "partition", "val_fraction", "held_out_clients"}
_LARGEST = 400
_NONE = (None, "None")


def settings_that_matter(
    trainer: pl.Trainer,
    federation: Federation,
    module: pl.LightningModule,
    data: FederatedDataModule,
    seed: int,
) -> Settings:
    """Return what a result depends on, bit for bit.

    What may change from one part of a run to the next is left out: ``max_epochs``, the number of
    workers, loggers, callbacks, paths, how often there is validation.

    Args:
        trainer: The trainer.
        federation: How clients learn together.
        module: The clients' module, as the user made it.
        data: The clients' data, divided.
        seed: The run's seed.
    """
    sampler = federation.sampler
    threads = federation.num_threads
    settings: dict[str, Any] = {
        "seed": seed,
        "federation.algorithm": federation.algorithm,
        "federation.aggregator": federation.aggregator,
        "federation.compression": federation.compression,
        "federation.cohort_size": federation.cohort_count(len(data.training_clients)),
        "federation.local_epochs": federation.local_epochs,
        "federation.head": federation.head,
        "federation.channels_last": federation.channels_last,
        "federation.clients_per_kernel": federation.clients_per_kernel,
        "federation.sampler": None
        if sampler is None
        else f"{type(sampler).__name__}{_plain_ones(vars(sampler))}",
        "torch threads": threads if threads is not None else torch.get_num_threads(),
        "partition": data.partition_digest()[:16],
        "data.held_out_clients": data.held_out_digest(),
        "dataset": data.dataset_fingerprint(),
        "data": type(data).__name__,
        "trainer.precision": trainer.precision,
        "trainer.accelerator": trainer.strategy.root_device.type,
        "trainer.gradient_clip_val": trainer.gradient_clip_val,
        "trainer.gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "trainer.limit_train_batches": trainer.limit_train_batches,
    }
    if federation.clients_per_kernel > 1:  # who shares a kernel decides about last bits
        settings["trainer.devices"] = trainer.world_size
    arguments = {k: v for k, v in _arguments(data).items() if k not in _ELSEWHERE}
    settings |= {f"data.{name}": value for name, value in arguments.items()}
    chosen = {**_arguments(module), **module.hparams}
    settings |= {f"model.{name}": value for name, value in _plain_ones(chosen).items()}
    settings["parts"] = named_parts(module) or None
    return {name: _shown(value) for name, value in settings.items()}


def optimizer_settings(optimizers: Iterable[Optimizer]) -> Settings:
    """Return kind and settings of optimizers that have not stepped yet.

    Example:
        >>> weights = [torch.nn.Parameter(torch.ones(1))]
        >>> optimizer_settings([torch.optim.SGD(weights, lr=0.5)])["optimizer"][:16]
        'SGD(dampening=0,'
    """
    texts = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            plain = {k: v for k, v in _plain_ones(group).items() if k != "params"}
            if "initial_lr" in plain:  # a scheduler has been at the other one
                plain["lr"] = plain.pop("initial_lr")
            inner = ", ".join(f"{name}={_shown(plain[name])}" for name in sorted(plain))
            texts.append(f"{type(optimizer).__name__}({inner})")
    return {"optimizer": ", ".join(texts)}


def refuse_changes(saved: Mapping[str, Any], present: Settings) -> None:
    """Compare two runs' settings; names that only one of them has are no difference.

    Raises:
        CheckpointError: If they differ; all differences are listed.

    Example:
        >>> refuse_changes({"seed": "0", "gone": "1"}, {"seed": "0"})
        >>> refuse_changes({"seed": "0"}, {"seed": "5"})
        Traceback (most recent call last):
        fedlightning.errors.CheckpointError: ... checkpoint: seed: 0 then, 5 now. Restore ...
    """
    if changed := _changes(saved, present):
        raise CheckpointError(
            f"this run cannot go on from the checkpoint: {'; '.join(changed)}. Restore these "
            "settings, or load the weights alone with load_from_checkpoint and start anew."
        )


def warn_of_changes(
    checkpoint: Mapping[str, Any],
    path: Any,
    federation: Federation,
    module: pl.LightningModule | None,
    data: FederatedDataModule | None,
) -> None:
    """Warn where a checkpoint that is evaluated means something else to the present settings.

    Args:
        checkpoint: What the file holds.
        path: The file.
        federation: How clients learn together.
        module: The clients' module, as the user made it, where it is known.
        data: The clients' data, divided, where they are known.
    """
    extra = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("extra")
    if not isinstance(extra, Mapping):  # the weights alone
        return
    kept, settings = extra["personal"], extra["settings"]
    heads = settings.get("federation.head"), settings.get("model.head")
    saved = {**settings, "head": next((head for head in heads if head not in _NONE), "head")}
    present: Settings = {
        "federation.algorithm": _shown(federation.algorithm),
        "head": _shown(federation.head or getattr(module, "head_prefix", "head")),
    }
    if data is not None and (kept["clients"] or kept.get("files")):
        present["partition"] = data.partition_digest()[:16]  # whose part is whose
    if changed := _changes(saved, present):
        rank_zero_warn(
            f"{path} was trained otherwise than it is evaluated: {'; '.join(changed)}. Its weights "
            "are used all the same."
        )


def _changes(saved: Mapping[str, Any], present: Settings) -> list[str]:
    if "federation.algorithm" in saved:
        saved = {**saved, "federation.algorithm": _as_now_shown(str(saved["federation.algorithm"]))}
    return [
        f"{name}: {value} then, {present[name]} now"
        for name, value in saved.items()
        if name in present and str(value) != present[name]
    ]


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
    """Return what a constructor was given, as far as it keeps that under the same names."""
    names = {
        name
        for kind in type(thing).__mro__
        if "__init__" in vars(kind) and kind.__module__.partition(".")[0] != "pytorch_lightning"
        for name in inspect.signature(vars(kind)["__init__"]).parameters
    }
    return _plain_ones({name: vars(thing)[name] for name in sorted(names) if name in vars(thing)})


def _plain_ones(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in values.items()
        if name not in _FREE and not name.startswith("_") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _shown(value: Any) -> str:
    """Return a value's text: the same for 1 and 1.0, for a list and a tuple."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(item) for item in value)}]"
    text = str(value)
    return text if len(text) <= _LARGEST else f"{text[:_LARGEST]}..."
