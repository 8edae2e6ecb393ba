"""Any value for any setting runs, or one line says why not: never a bug of ours, nor debris."""

import os
import random

import pytest

KEYS = [
    "ckpt_path", "data", "data.batch_size", "data.check_data", "data.drop_last",
    "data.eval_batch_size", "data.eval_clients", "data.held_out_clients", "data.num_clients",
    "data.partition", "data.partition.per_client",
    "data.val_fraction", "federation", "federation.aggregator", "federation.algorithm",
    "federation.compression", "federation.algorithm.weights",
    "federation.channels_last", "federation.client_timeout", "federation.clients_per_kernel",
    "federation.cohort_size", "federation.head", "federation.local_epochs",
    "federation.max_retries", "federation.min_clients", "federation.num_threads",
    "federation.on_client_failure", "federation.personal_memory_mb", "federation.sampler",
    "federation.seed", "model", "model.head", "model.hidden", "model.in_features", "model.lr",
    "model.lr_milestones", "model.momentum", "model.num_classes", "model.weight_decay",
    "seed_everything", "trainer.accumulate_grad_batches", "trainer.callbacks",
    "trainer.check_val_every_n_epoch", "trainer.enable_checkpointing", "trainer.gradient_clip_val",
    "trainer.limit_train_batches", "trainer.limit_val_batches", "trainer.log_every_n_steps",
    "trainer.logger", "trainer.max_epochs", "trainer.max_time", "trainer.min_epochs",
    "trainer.num_sanity_val_steps", "trainer.precision", "trainer.profiler",
]  # fmt: skip
VALUES = [
    "0", "1", "2", "-1", "0.5", "2.5", "-0.0", "1e-9", "1e30", ".nan", ".inf", "-.inf", "null",
    "true", "false", "''", "abc", "head", "[]", "{}", "[1]", "[0.5]", "[[1]]", "{a: 1}", "MLP",
    "FedAvg", "FedRep", "Krum", "Int8", "Digits", "Timer", "IID",
    "../../x", "a/b", "~", "0x10", "1_000", "2026-01-01", "é",
    "${model.lr}", "${nothing}", "${", "!!int 3", "&a [*a]", "os.system", "no.such.Thing", "*", "%",
]  # fmt: skip


def cases(number: int, seed: int) -> list[tuple[str, ...]]:
    rng = random.Random(seed)
    return [
        tuple(f"--{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(rng.choice([1, 1, 2])))
        for _ in range(number)
    ]


def check(run, tmp_path, options: tuple[str, ...]) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    # a run that is allowed to have no end gets one
    ended = run("B", "--trainer.max_steps=4", "--trainer.accelerator=cpu", *options)
    assert ended.code in (0, 2, 3, 4, 5, 6), (options, ended)
    if ended.code:
        assert ended.error, options
        assert sorted(path.name for path in tmp_path.iterdir()) == before, options


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", cases(40, seed=0), ids=" ".join)
def test_any_value_for_any_setting(run, tmp_path, options):
    check(run, tmp_path, options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    cases(int(os.environ.get("FEDLIGHTNING_FUZZ", "600")), seed=1),
    ids=" ".join,
)
def test_many_more_values(run, tmp_path, options):
    check(run, tmp_path, options)
