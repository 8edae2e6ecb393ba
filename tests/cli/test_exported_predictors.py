"""`export` of a client that predicts with two models and a rule: in the formats that compute."""

from __future__ import annotations

import pytest
import torch

from fedlightning.__main__ import main
from fedlightning.algorithms import FedPN
from fedlightning.cli.rebuilding import algorithm_from_run, module_from_run
from fedlightning.datamodules import Classes, FewClassDigits
from fedlightning.personalization.models import client_predictor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fedpn")
    options = [
        "--trainer.max_epochs=2", "--federation.local_epochs=1",
        "--trainer.callbacks.init_args.epochs=2", "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={folder}",
    ]  # fmt: skip
    assert main(["fit", "--config=algorithms/fedpn.yaml", *options]) == 0
    return folder / "lightning_logs" / "version_0"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_file_predicts_what_the_client_does(run, tmp_path):
    file = tmp_path / "client.pt2"
    assert main(["export", f"--run={run}", "--client=3", f"--output={file}"]) == 0
    assert algorithm_from_run(run) == FedPN(quantile=0.9)
    predictor = client_predictor(run, 3, module_from_run(run), algorithm_from_run(run))
    data = FewClassDigits(num_clients=10, partition=Classes(3), val_fraction=0.2, seed=0)
    data.setup()
    ((x, _),) = data.batches(3, "mixture")
    with torch.no_grad():
        found = torch.export.load(file).module()(x)
        assert torch.allclose(found, predictor.predict(x), atol=1e-5)


def test_a_format_of_weights_cannot_hold_it(run, tmp_path, capsys):
    file = tmp_path / "client.safetensors"
    assert main(["export", f"--run={run}", "--client=3", f"--output={file}"]) == 2
    assert "predicts with more than one state of PosteriorNetwork" in capsys.readouterr().err
    assert not file.exists()
