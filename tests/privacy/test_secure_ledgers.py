"""Under secure noise nothing is released that the run, resumed, does not know of."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

pytest.importorskip("opacus", reason="needs the extra opacus")
pytest.importorskip("dp_accounting", reason="needs the extra dp")

from fedlightning import ClientDP, FedBABU, FedPer, PoissonSampler, PrivateSGD
from fedlightning.engine.secure_ledgers import SecureLedgers
from fedlightning.errors import CheckpointError, EnvironmentFailure
from fedlightning.privacy import Ledger
from fedlightning.privacy.example_ledger import ExampleLedger, with_account
from fedlightning.privacy.handover import hand_over
from fedlightning.storage.checkpoint_reader import read_checkpoint
from fedlightning.storage.locks import RunLock
from tests.engine.test_resume import Stop, StopAt
from tests.storage.test_atomic_files import room_for
from tests.toys import client_states, data, loop_of, net, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:federation.privacy:UserWarning"),
    pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step"),  # nobody was drawn
]

SIZES = (8, 6, 7, 5)
STEPS = 2  # batches of 4


class Releases(pl.Callback):
    """Counts, beside all ledgers, how often each client's update is handed to the server."""

    def __init__(self):
        self.clients = Counter()

    def on_train_batch_end(self, trainer, module, outputs, task, position):
        self.clients[task.client] += 1


def examples_run(folder, callbacks=(), rounds=3, ckpt=None, devices=1):
    algorithm = FedPer() + PrivateSGD(1.0, batch_size=2, secure=True)
    several = {"devices": devices, "accelerator": "cpu", "strategy": "ddp_fork"}
    built = trainer(
        algorithm, rounds, 1.0, folder, {"seed": 1}, callbacks=list(callbacks),
        **(several if devices > 1 else {}),
    )  # fmt: skip
    built.fit(net(dropout=0.0), datamodule=data(SIZES), ckpt_path=ckpt)
    kept = client_states(read_checkpoint(next(folder.rglob("last.ckpt"))))
    return {int(k.split("/")[0]): v.tolist() for k, v in kept.items() if k.endswith("example_dp")}


@pytest.mark.parametrize(("round_", "devices"), [(0, 1), (1, 1), (1, 2)])
def test_steps_that_were_released_and_lost_count_in_each_clients_account(round_, devices, tmp_path):
    before = Releases()
    with pytest.raises(Stop):
        examples_run(tmp_path, [before, StopAt("on_train_batch_end", round_, client=2)])
    lost = before.clients - Counter(dict.fromkeys(range(4), round_))
    assert sum(lost.values()) == 3
    accounts = examples_run(tmp_path, ckpt="last", devices=devices)
    made = before.clients + Counter(dict.fromkeys(range(4), 3 - round_))
    assert accounts == {c: [n, STEPS * made[c]] for c, n in enumerate(SIZES)}
    assert sum(made.values()) == 3 * len(SIZES) + 3
    (path,) = tmp_path.rglob("private_steps.csv")
    assert ExampleLedger(path).steps() == {c: tuple(account) for c, account in accounts.items()}


def test_a_lost_ledger_of_examples_is_refused(tmp_path):
    examples_run(tmp_path, rounds=1)
    next(tmp_path.rglob("private_steps.csv")).unlink()
    with pytest.raises(CheckpointError, match=r"private_steps\.csv: the ledger of what was rel"):
        examples_run(tmp_path, rounds=2, ckpt="last")


def test_a_line_that_a_kill_has_torn_is_cut_off_and_the_largest_account_counts(tmp_path):
    ledger = ExampleLedger.create(tmp_path / "steps.csv")
    for client, steps in ((3, 4), (5, 2), (3, 8), (3, 6)):
        ledger.add(client, torch.tensor([50, steps]))
    with ledger.path.open("ab") as file:
        file.write(b"5,50,9")  # 9, or the beginning of 98: it was not released
    assert ledger.steps() == {3: (50, 8), 5: (50, 2)}
    ledger.add(5, torch.tensor([50, 4]))
    assert ExampleLedger.create(ledger.path).steps() == {3: (50, 8), 5: (50, 4)}
    ledger.path.write_text("nonsense\n")
    with pytest.raises(CheckpointError, match=r"private steps .* cannot be read"):
        ledger.steps()
    kept = {"example_dp": torch.tensor([50, 7])}
    assert with_account(kept, torch.tensor([50, 6])) is kept


@pytest.mark.parametrize("torn", [1, 2, 3, 6])
def test_an_account_that_finds_no_room_is_refused_and_harms_no_other(tmp_path, torn):
    """Half of ``3,50,12`` would undercount, or make one line with the next client's account."""
    ledger = ExampleLedger.create(tmp_path / "steps.csv")
    ledger.add(3, torch.tensor([50, 2]))
    with room_for(ledger.path, torn), pytest.raises(EnvironmentFailure, match=r"[Nn]o space left"):
        ledger.add(3, torch.tensor([50, 12]))
    assert ledger.steps() == {3: (50, 2)}
    ledger.add(4, torch.tensor([60, 2]))
    assert ledger.steps() == {3: (50, 2), 4: (60, 2)}


def clients_run(folder, rounds, ckpt=None, callbacks=(), **kwargs):
    built = trainer(
        FedBABU(), rounds, None, folder,
        {
            "seed": 3, "sampler": PoissonSampler(0.5), "on_client_failure": "skip",
            "privacy": ClientDP(noise_multiplier=1.0, secure=True),
        },
        callbacks=list(callbacks), **kwargs,
    )  # fmt: skip
    built.fit(net(), datamodule=data(SIZES), ckpt_path=ckpt)
    return Ledger.of_tensor(loop_of(built).server.private_state["ledger"]).rounds


def test_a_run_killed_amid_its_first_round_goes_on_with_its_ledger(tmp_path):
    with pytest.raises(Stop):
        clients_run(tmp_path, 2, callbacks=[StopAt("on_aggregate_end", 0)])
    assert clients_run(tmp_path, 2, ckpt="auto") == 3
    (path,) = tmp_path.rglob("privacy.json")  # and in the same folder
    assert Ledger.read(path).rounds == 3


def test_a_mutant_that_forgets_what_was_released_and_lost_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(SecureLedgers, "open", lambda *args: Ledger())
    with pytest.raises(AssertionError):
        test_a_run_killed_amid_its_first_round_goes_on_with_its_ledger(tmp_path)


def test_of_two_runs_from_one_checkpoint_the_second_is_refused(tmp_path):
    clients_run(tmp_path / "a", 1)
    (first,) = (tmp_path / "a").rglob("last.ckpt")
    assert clients_run(tmp_path / "b", 2, ckpt=first) == 2
    for folder in ("c", "a"):  # a third place, and the first one
        with pytest.raises(CheckpointError, match=r"has gone on in .*b/.* would each count"):
            clients_run(tmp_path / folder, 3, ckpt=first)
    (second,) = (tmp_path / "b").rglob("last.ckpt")
    assert clients_run(tmp_path / "b", 3, ckpt=second) == 3
    second.parent.parent.rename(tmp_path / "lost")
    with pytest.raises(CheckpointError, match="which is missing, and with it what was released"):
        clients_run(tmp_path / "c", 3, ckpt=first)


def died_before_its_first_checkpoint(tmp_path):
    """Run in a, then go on in b, which dies; return the checkpoint in a."""
    clients_run(tmp_path / "a", 1)
    (first,) = (tmp_path / "a").rglob("last.ckpt")
    with pytest.raises(Stop):
        clients_run(tmp_path / "b", 2, first, [StopAt("on_aggregate_end", 1)])
    for path in (tmp_path / "b").rglob("*.ckpt"):
        path.unlink()
    return first


def test_a_run_that_died_before_its_first_checkpoint_is_taken_over_with_what_it_released(tmp_path):
    """Without checkpoints of its own, the second run counts in what the third one does."""
    first = died_before_its_first_checkpoint(tmp_path)
    assert clients_run(tmp_path / "c", 2, ckpt=first) == 3


def test_a_run_that_is_at_work_is_not_forked(tmp_path):
    clients_run(tmp_path / "a", 1)
    (first,) = (tmp_path / "a").rglob("last.ckpt")
    lock = RunLock(first.parent.parent)
    lock.acquire()
    try:
        with pytest.raises(EnvironmentFailure, match=r"another run .* is at work"):
            clients_run(tmp_path / "b", 2, ckpt=first)
    finally:
        lock.release()


def test_what_died_before_its_first_checkpoint_counts_where_its_checkpoint_came_from(tmp_path):
    first = died_before_its_first_checkpoint(tmp_path)
    assert clients_run(tmp_path / "a", 2, ckpt="last") == 3
    assert clients_run(tmp_path / "c", 3, ckpt=first) == 4  # not what the second had counted


class Forks(pl.Callback):
    """Tries, amid a round, to go on from the same checkpoint in other folders."""

    def __init__(self, checkpoint: Path, folders: list[Path]):
        self.checkpoint, self.folders, self.refused = checkpoint, folders, []

    def on_train_epoch_start(self, trainer, module):
        saved = list(Path(trainer.log_dir).rglob("*.ckpt"))  # as before there is any
        for path in saved:
            path.rename(path.with_suffix(".hidden"))
        for folder in self.folders:
            with pytest.raises(EnvironmentFailure) as refusal:
                hand_over(self.checkpoint, folder, ["privacy.json"])
            self.refused.append(str(refusal.value))
        for path in saved:
            path.with_suffix(".hidden").rename(path)


@pytest.mark.parametrize("board_first", [False, True])
def test_a_run_that_has_no_checkpoint_yet_is_not_forked_while_it_is_at_work(tmp_path, board_first):
    clients_run(tmp_path / "a", 1)
    (first,) = (tmp_path / "a").rglob("last.ckpt")
    (tmp_path / "c").mkdir()
    forks = Forks(first, [tmp_path / "c", first.parent.parent])
    loggers = [TensorBoardLogger(tmp_path / "b"), CSVLogger(tmp_path / "b")]
    logger = {"logger": loggers} if board_first else {}
    assert clients_run(tmp_path / "b", 2, first, [forks], **logger) == 2
    note = json.loads((first.parent.parent / "continued.json").read_text())["folder"]
    there = (first.parent.parent / note).resolve()
    assert forks.refused == [
        f"{first.parent.parent} goes on in {there}, where another run is at work, and each of two "
        "would count its own releases alone; wait for that one or stop it, and resume it."
    ] * 2  # fmt: skip
    assert not list((tmp_path / "c").iterdir())


def test_a_checkpoint_without_its_run_folder_is_refused(tmp_path):
    clients_run(tmp_path / "a", 1)
    (first,) = (tmp_path / "a").rglob("last.ckpt")
    moved = Path(tmp_path / "x" / "y" / "last.ckpt")
    moved.parent.mkdir(parents=True)
    first.rename(moved)
    with pytest.raises(CheckpointError, match=r"privacy\.json: the ledger .* is missing"):
        clients_run(tmp_path / "b", 2, ckpt=moved)
