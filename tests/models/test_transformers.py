"""Adapters on a frozen transformer: what is trained, shared, kept, sent and saved."""

import csv
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("datasets")

from fedlightning import Algorithm, FedAvg, FederatedTrainer, Federation
from fedlightning.__main__ import main
from fedlightning.core.state import live_state
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import CheckpointError, ConfigError, EnvironmentFailure
from fedlightning.models import CausalLM, TransformersClassifier
from fedlightning.storage.checkpoint_reader import read_checkpoint
from tests.toys import same, state

BERT = {
    "model_type": "bert", "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 16,
}  # fmt: skip
LORA = {"r": 2, "target_modules": ["query", "value"]}
RECIPE = Path(__file__).parents[2] / "configs" / "hf" / "tiny_lora.yaml"


def classifier(adapters=("adapter",), seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return TransformersClassifier(
            BERT, num_classes=2, adapters=dict.fromkeys(adapters, LORA) or None, init_seed=seed,
            lr=0.01, **options,
        )  # fmt: skip


def clients():
    def part(count, seed):
        ids = torch.randint(1, 40, (count, 6), generator=torch.Generator().manual_seed(seed))
        return ids, (ids[:, 0] > 20).long()

    return ClientDatasets([part(8, c) for c in range(3)], [part(4, 9)] * 3, batch_size=4)


def fit(module, algorithm, folder, rounds=1, **options):
    trainer = FederatedTrainer(
        federation=Federation(algorithm, cohort_size=1.0, seed=0), max_epochs=rounds,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=clients(), **options)
    return trainer


def frozen(module):
    return {k: p.clone() for k, p in module.named_parameters() if not p.requires_grad}


def sizes(module, part):
    return sum(live_state(module)[key].numel() for key in module.part_keys(part))


def test_a_frozen_backbone_is_in_no_state_dict():
    module = classifier()
    assert set(module.state_dict()) == set(module.part_keys("adapter + head"))
    assert sizes(module, "adapter") == 2 * 2 * (2 * 8)  # query and value, A and B of rank 2
    assert sizes(module, "head") == 2 * 8 + 2
    assert classifier(adapters=()).part_keys("body")[0] in live_state(classifier(adapters=()))


def test_the_adapter_is_shared_and_the_head_kept(tmp_path):
    module = classifier()
    before, backbone = state(module), frozen(module)
    trainer = fit(module, Algorithm(train="adapter + head", share="adapter"), tmp_path)
    after = state(module)
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert moved <= set(module.part_keys("adapter"))
    assert moved
    assert same(backbone, frozen(module))
    kept = trainer.federated_loop.client_store.get(0)
    assert set(kept) == set(module.part_keys("head"))
    assert trainer.callback_metrics["communication/bytes_up"] == 3 * 4 * sizes(module, "adapter")


def test_fedbabu_on_adapters_leaves_the_head_alone(tmp_path):
    module = classifier()
    head = {key: state(module)[key] for key in module.part_keys("head")}
    trainer = fit(module, Algorithm(train="adapter", share="adapter"), tmp_path)
    assert same(head, {key: state(module)[key] for key in head})
    assert not list(trainer.federated_loop.client_store)


def test_one_adapter_is_shared_while_every_client_keeps_another(tmp_path):
    module = classifier(adapters=("common", "own"))
    trainer = fit(module, Algorithm(train="adapter + head", share="common + head"), tmp_path)
    stores = [trainer.federated_loop.client_store.get(client) for client in range(3)]
    assert all(set(kept) == set(module.part_keys("own")) for kept in stores)
    assert not same(stores[0], stores[1])


def test_a_checkpoint_has_the_adapters_alone_and_resumes_to_the_same_bits(tmp_path):
    whole = classifier()
    fit(whole, FedAvg(), tmp_path / "whole", rounds=2)
    fit(classifier(), FedAvg(), tmp_path / "part", rounds=1)
    path = next((tmp_path / "part").rglob("last.ckpt"))
    assert set(read_checkpoint(path)["state_dict"]) == set(whole.part_keys("adapter + head"))
    again = classifier()
    fit(again, FedAvg(), tmp_path / "again", rounds=2, ckpt_path=path)
    assert same(state(whole), state(again))
    with pytest.raises(CheckpointError, match=r"another frozen backbone .*same model and init_s"):
        classifier(seed=5).on_load_checkpoint(read_checkpoint(path))


def test_perplexity_is_over_all_tokens_of_a_client():
    gpt = {"model_type": "gpt2", "vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2}
    module = CausalLM({**gpt, "n_positions": 8}).eval()
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])
    mask = (ids > 0).long()
    logits, targets = module._predicted({"input_ids": ids, "attention_mask": mask})
    assert targets.tolist() == [[2, 3, -100], [5, 6, 7]]
    logs = logits.log_softmax(-1)
    each = [logs[0, 0, 2], logs[0, 1, 3], logs[1, 0, 5], logs[1, 1, 6], logs[1, 2, 7]]
    module.perplexity(logits, targets)
    expected = torch.stack(each).neg().mean().exp()
    assert torch.allclose(module.perplexity.compute(), expected)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"model.adapters.adapter=.*[Tt]arget modules"):
        TransformersClassifier(BERT, adapters={"adapter": {"r": 2, "target_modules": ["nosuch"]}})
    with pytest.raises(ConfigError, match=r"model.model=.*nosuch"):
        TransformersClassifier({"model_type": "nosuch"})
    with pytest.raises(EnvironmentFailure, match=r"model.model=/nowhere"):
        TransformersClassifier("/nowhere")


def test_the_recipe_runs_and_names_its_clients(tmp_path):
    notes = tmp_path / "notes.csv"
    lines = [
        f"{a},{'fine day' if n % 2 else 'bad'},{n % 2}" for a in ("ann", "bob") for n in range(20)
    ]
    notes.write_text("author,text,label\n" + "\n".join(lines) + "\n")
    words = [f"--data.dataset={notes}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert main(["fit", f"--config={RECIPE}", *words, "--trainer.max_epochs=2"]) == 0
    with next((tmp_path / "run").rglob("clients.csv")).open(newline="") as file:
        assert [row["client_name"] for row in csv.DictReader(file)] == ["ann", "bob"]
