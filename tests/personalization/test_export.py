"""A client's model outside of a federation gives the logits that it gives inside."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from fedlightning import AtomicCheckpointIO, FederatedModule
from fedlightning.cli import module_from_run
from fedlightning.core.state import live_state
from fedlightning.errors import CheckpointError, ConfigError, EnvironmentFailure
from fedlightning.models import MLP, Conv4
from fedlightning.personalization import models as personal_models
from fedlightning.personalization.models import FORMATS, example_input, export_model
from fedlightning.personalization.models.writer import About, PersonalWriter, state_digest
from tests.toys import Net, net, same


def client_model(run, client, module=None, **settings):
    """Return a client's model in the module that the run's config names, or in a given one."""
    if module is None:
        module = lambda: module_from_run(run)  # noqa: E731
    return personal_models.client_model(run, client, module, **settings)


CONV4 = {"class_path": "fedlightning.models.Conv4", "init_args": {"width": 4, "image_size": 16}}
MLP4 = {"class_path": "fedlightning.models.MLP", "init_args": {"hidden": [4]}}


def leave_run(folder, module, model, shape=None, client=7, checkpoint=True):
    """Leave what a run leaves: config, checkpoint, and a client's own head; return its model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "trainer": {}}))
    state = {key: value.clone() for key, value in live_state(module).items()}
    if checkpoint:
        path = folder / "checkpoints" / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint({"state_dict": state}, path)
    about = About(3, "head", state_digest(state), None, shape, "float32")
    writer = PersonalWriter(folder, about)
    writer.open()
    own = {key: value + 0.5 for key, value in module.part_state_dict("head").items()}
    writer.keep(client, own)
    writer.publish()
    module.load_part(own)
    return module.eval()


@pytest.fixture
def run(tmp_path):
    """The folder of a run of a 4convNet, and its client's model as it was in that run."""
    module = Conv4(width=4, image_size=16)
    return tmp_path / "run", leave_run(tmp_path / "run", module, CONV4, (3, 16, 16))


def computes(path, chosen, batch, built):
    """Return what the exported model gives for a batch."""
    if chosen == "exported_program":
        return torch.export.load(path).module()(batch)
    if chosen == "onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(str(path))
        return torch.from_numpy(session.run(["output"], {"input": batch.numpy()})[0])
    weights = load_file(path) if chosen == "safetensors" else torch.load(path, weights_only=True)
    built.load_state_dict(weights)
    return built.eval()(batch)


@pytest.mark.parametrize("chosen", FORMATS)
@pytest.mark.parametrize("kind", ["conv", "norm"])
@torch.no_grad()
def test_every_format_gives_the_same_logits_for_batches_of_any_size(tmp_path, chosen, kind):
    if chosen == "onnx":
        pytest.importorskip("onnxscript")
    if kind == "conv":
        module, model, shape = Conv4(width=4, image_size=16), CONV4, (3, 16, 16)
    else:
        module, model, shape = net(norm=True), None, (4,)
        module.train()(torch.rand(9, 4))  # its statistics are no zeros and ones
    inside = leave_run(tmp_path / "run", module, model, shape)
    other = Conv4(width=4, image_size=16) if kind == "conv" else net(seed=3, norm=True)
    given = None if kind == "conv" else net(seed=4, norm=True)
    outside = client_model(tmp_path / "run", 7, module=given)
    example = example_input(outside, tmp_path / "run")
    path = export_model(outside, tmp_path / "model", chosen, example)
    for size in (1, 2, 5):
        batch = torch.rand(size, *shape, generator=torch.Generator().manual_seed(size))
        expected = inside(batch)
        found = computes(path, chosen, batch, other)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_clients_model_is_the_global_one_with_its_own_part(run):
    folder, inside = run
    before = torch.random.get_rng_state()
    mine, globally = client_model(folder, 7), client_model(folder, "global")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(live_state(mine), live_state(inside))
    for key, value in globally.part_state_dict("body").items():
        assert torch.equal(value, live_state(mine)[key])
    assert not torch.equal(globally.head.weight, mine.head.weight)
    assert not any(module.training for module in (*mine.modules(), *globally.modules()))


def test_a_part_of_another_global_model_is_refused(run):
    folder, _ = run
    other = {key: value + 1 for key, value in live_state(Conv4(width=4, image_size=16)).items()}
    path = folder / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": other}, path)
    with pytest.raises(CheckpointError, match="goes with another global model, of round 3"):
        client_model(folder, 7)
    assert client_model(folder, "global").head.out_features == 10


def test_a_run_that_personalised_anothers_checkpoint_knows_where_that_is(run, tmp_path):
    folder, inside = run
    later = tmp_path / "later"
    leave_run(later, Conv4(width=4, image_size=16), CONV4, checkpoint=False)
    index = later / "personalized" / "index.json"
    (folder / "personalized").rename(later / "own")
    for path in (later / "personalized").iterdir():
        path.unlink()
    for path in (later / "own").iterdir():
        path.rename(later / "personalized" / path.name)
    content = json.loads(index.read_text())
    content["checkpoint"] = "../run/checkpoints/last.ckpt"
    index.write_text(json.dumps(content))
    assert same(live_state(client_model(later, 7)), live_state(inside))
    (folder / "checkpoints" / "last.ckpt").rename(tmp_path / "moved.ckpt")
    with pytest.raises(CheckpointError, match=r"is gone: give its new place with ckpt_path"):
        client_model(later, 7)
    moved = client_model(later, 7, ckpt_path=tmp_path / "moved.ckpt")
    assert same(live_state(moved), live_state(inside))


def test_damaged_checkpoints_and_other_networks(run):
    folder, _ = run
    with pytest.raises(CheckpointError, match=r"ckpt_path=.*head\.weight is \(10, 4\)"):
        client_model(folder, 7, module=net(norm=True))
    path = folder / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="corrupt"):
        client_model(folder, 7)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        client_model(folder, 7)


def test_folders_that_are_no_runs(tmp_path, run):
    folder, _ = run
    with pytest.raises(ConfigError, match="is not a folder"):
        client_model(tmp_path / "nothing", 7)
    with pytest.raises(ConfigError, match="client must be a client's id or 'global', got '7'"):
        client_model(folder, "7")
    with pytest.raises(CheckpointError, match="no personal models"):
        client_model(tmp_path, 7)
    with pytest.raises(CheckpointError, match="has no checkpoints: give one with ckpt_path"):
        client_model(tmp_path, "global")
    (folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"pass it: client_model\(run, client, module\)"):
        client_model(folder, 7)
    assert client_model(folder, 7, module=Conv4(width=4, image_size=16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {width: 4}", "model names no class_path"),
        ("model: {class_path: fedlightning.models.Conv4, init_args: {wdth: 4}}", "wdth"),
        ("model: {class_path: fedlightning.models.Conv4, init_args: {lr: -1}}", r"model\.lr"),
        ("model: {class_path: nowhere.Net}", "nowhere"),
        ("model: !!python/name:os.system", "is not allowed"),
        ("model: [", "config.yaml"),
        ("- a", "must be a mapping"),
    ],
)
def test_configs_that_name_no_model(run, text, message):
    folder, _ = run
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        client_model(folder, 7)


# -- writing ---------------------------------------------------------------------------------


def test_a_file_that_is_there_stays_unless_told_otherwise(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        export_model(MLP(), path)
    assert path.read_text() == "mine"
    export_model(MLP(), path, overwrite=True)
    assert torch.load(path, weights_only=True).keys() == MLP().state_dict().keys()
    with pytest.raises(ConfigError, match="is a folder"):
        export_model(MLP(), tmp_path, "onnx", overwrite=True)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("m.bin", None, "the name does not say the format"),
        ("m.pt", "torchscript", "torchscript is deprecated by torch and not written"),
        ("m.pt", "safetensor", "Did you mean 'safetensors'"),
    ],
)
def test_formats_that_there_are_not(tmp_path, name, given, message):
    with pytest.raises(ConfigError, match=message):
        export_model(MLP(), tmp_path / name, given)
    assert not list(tmp_path.iterdir())


class Branches(Net):
    """Computes in a way that no export can follow: by the values of its inputs."""

    def forward(self, x):
        return super().forward(x) if float(x.sum()) > 1e9 else super().forward(-x)


@pytest.mark.parametrize("shape", [(4,), (5,)])
def test_models_that_cannot_be_exported_are_told_so_in_one_line(tmp_path, shape, caplog, capfd):
    with pytest.raises(ConfigError, match="Branches cannot be exported as exported_program") as e:
        export_model(net(module=Branches), tmp_path / "m.pt2", example=torch.zeros(2, *shape))
    assert len(str(e.value)) < 600
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


def test_onnx_without_its_packages_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'fedlightning\[onnx\]'"):
        export_model(net(), tmp_path / "m.onnx", example=torch.zeros(2, 4))


class Knows(FederatedModule):
    """Says itself what it takes."""

    example_input_array = torch.zeros(1, 5, dtype=torch.int64)

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Embedding(9, 3), nn.Linear(3, 2)


def test_the_shape_of_an_input_is_given_or_the_runs_or_the_modules(run):
    folder, inside = run
    assert example_input(inside, folder).shape == (2, 3, 16, 16)
    assert example_input(inside, folder, (1, 8, 8)).shape == (2, 1, 8, 8)
    known = example_input(Knows())
    assert (known.shape, known.dtype) == ((2, 5), torch.int64)
    with pytest.raises(ConfigError, match="give input_shape"):
        example_input(inside)
