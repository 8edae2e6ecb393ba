"""The authors' own code, recorded, is reproduced: weights, head and accuracies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.plain_loop import PlainRun, State
from tests.traces import Trace, TraceData, trace_files

FILES = trace_files()


@pytest.fixture(scope="module", params=FILES or [None], ids=[f.stem for f in FILES] or ["none"])
def trace(request: pytest.FixtureRequest) -> Trace:
    if request.param is None:
        pytest.skip("no recorded traces: set FEDLIGHTNING_TRACES")
    return Trace.read(request.param)


@pytest.fixture(scope="module")
def plain(trace: Trace) -> PlainRun:
    return PlainRun(trace)


def _reproduced(got: State, recorded: State, plain: State, within: float) -> bool:
    """Whether a state is the plain loop's, and as near to the recorded one as that loop comes."""
    noise = _largest_difference(plain, recorded)  # 0 on the kind of processor that recorded it
    return (
        _largest_difference(got, plain) <= within
        and _largest_difference(got, recorded) <= within + noise
    )


def _largest_difference(got: State, expected: State) -> float:
    assert expected.keys() <= got.keys()
    return max(float((got[key].double() - expected[key].double()).abs().max()) for key in expected)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _fit(trace: Trace, rounds: int, folder: Path, **kwargs):
    model = trace.model()
    trainer = trace.trainer(rounds, folder, num_sanity_val_steps=0, **kwargs)
    if rounds != trace.settings["rounds"]:
        model.lr_milestones = ()
    trainer.fit(model, TraceData(trace))
    return model, trainer


def test_first_round_lands_within_1e_6(trace, plain, tmp_path):
    model, _ = _fit(trace, 1, tmp_path, logger=False, enable_checkpointing=False)
    assert _reproduced(model.state_dict(), trace.state("round1"), plain.rounds[0], within=1e-6)


def test_last_round_head_and_personalization_are_the_authors(trace, plain, tmp_path):
    settings = trace.settings
    model, trainer = _fit(trace, settings["rounds"], tmp_path)

    final = trace.state(f"round{settings['rounds']}")
    assert _reproduced(model.state_dict(), final, plain.rounds[-1], within=1e-5)

    if settings["update_part"] == "body":
        init = trace.state("init")
        for key in model.part_keys("head"):
            assert torch.equal(model.state_dict()[key], init[key])

    records = trainer.callbacks[0].records
    before = [100 * record.acc_before for record in records]
    after = [100 * record.acc_after for record in records]
    assert before == pytest.approx(settings["finetune"]["accuracy_before_percent"], abs=1e-4)
    assert after == pytest.approx(settings["finetune"]["accuracy_after_percent"], abs=1e-4)


def test_fine_tuned_client_lands_within_1e_5(trace, plain, tmp_path):
    model, trainer = _fit(trace, trace.settings["rounds"], tmp_path, logger=False)
    callback = trainer.callbacks[0]
    with callback.personalizer(trainer).at_work() as personalizer:
        personalizer.client(0)
        tuned = {key: value.clone() for key, value in model.state_dict().items()}
    assert _reproduced(tuned, trace.state("finetuned_client0"), plain.tuned, within=1e-5)
