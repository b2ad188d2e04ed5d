import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny, tiny_model
from tests.training.test_batches import VOCAB, padded_training
from tests.training.test_loop import CFG, StoppedError, assert_same, run
from zerogr_ray.adapters import ABOUT, SHIPPED, describe_base, find_adapted_model, read_adapter
from zerogr_ray.config import TrainingConfig
from zerogr_ray.errors import ModelError
from zerogr_ray.models import load_model
from zerogr_ray.training.batches import pack
from zerogr_ray.training.checkpoints import finished
from zerogr_ray.training.examples import Example
from zerogr_ray.training.lora import merged, prepared
from zerogr_ray.training.losses import pack_losses

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("write_at_every_step")]

LORA = CFG.model_copy(update={"method": "lora", "lora_rank": 4, "lora_alpha": 8, "learning_rate": 2e-2})
IDS = torch.tensor([[3, 14, 15, 92, 65, 35]])


@pytest.fixture
def adapter(source, shards, tmp_path):
    """A folder as `zerogr train` leaves it."""
    folder = run(source, shards, tmp_path / "out", LORA, product="adapter")[0].product
    about = {"format": 1, "task": "queries", "base": describe_base(str(source), source), "settings": {}}
    (folder / "zerogr.json").write_text(json.dumps(about))
    return folder


def lora_model(vocab=VOCAB):
    """A tiny model whose adapters are not zero any more."""
    model = prepared(tiny_model(vocab), LORA)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    return model


def test_only_the_adapters_of_all_linear_layers_are_trained():
    model = lora_model()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(trained) == 2 * len(linear) * 2  # layers x kinds x {A, B}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == linear


def test_packed_loss_and_gradients_are_pefts_own_on_padded_rows():
    examples = [Example([1, 2, 3, 4 + i], [5, i % VOCAB, 7], f"q{i}") for i in range(6)]
    model = lora_model()
    wanted, plain = padded_training(model, examples)
    model.zero_grad()
    packs = pack(examples, 12)
    assert len(packs) > 1
    losses = [pack_losses(model, one).answers for one in packs]
    sum(losses).backward()
    assert abs(float(sum(losses).detach()) - wanted) < 1e-5 * wanted
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-4, atol=1e-5)


def test_an_interrupted_lora_run_ends_with_the_weights_of_an_undisturbed_one(source, shards, tmp_path):
    _, undisturbed, rows = run(source, shards, tmp_path / "whole", LORA)
    assert rows[-1]["loss"] < rows[0]["loss"]
    for step in (2, 5):
        with pytest.raises(StoppedError):
            run(source, shards, tmp_path / "broken", LORA, stop_after=step)
    saved = load_file(tmp_path / "broken" / "checkpoint-00000005" / "model.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)
    result, resumed, _ = run(source, shards, tmp_path / "broken", LORA)
    assert result.resumed_at == 5
    assert_same(undisturbed, resumed)


def test_the_published_model_is_the_merged_one(source, shards, tmp_path):
    from zerogr_ray.training import loop

    kept = {}
    real = loop.publish

    def publish(folder, model, *rest):
        with torch.inference_mode():
            kept["logits"] = model(IDS).logits
        return real(folder, model, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "publish", publish)
        result = run(source, shards, tmp_path / "out", LORA)[0]
    base, model = load_model(source, "float32", "cpu"), load_model(result.product, "float32", "cpu")
    assert set(model.state_dict()) == set(base.state_dict())
    with torch.inference_mode():
        moved = (base(IDS).logits - kept["logits"]).abs().max()
        torch.testing.assert_close(model(IDS).logits, kept["logits"], rtol=0.02, atol=0.02 * float(moved) + 0.05)
        assert moved > 1


def test_merging_changes_no_logits():
    model = lora_model(120)
    with torch.inference_mode():
        before = model(IDS).logits
        after = merged(model)(IDS).logits
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_an_adapter_folder_gives_what_peft_makes_of_it(source, adapter, monkeypatch, tmp_path):
    from peft import PeftModel

    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    assert finished(adapter.parent, "f", "adapter") == adapter
    assert finished(adapter.parent, "f", "model") is None
    ours = find_adapted_model(str(source), adapter)
    stamp = (ours / "model.safetensors").stat().st_mtime_ns
    peft = PeftModel.from_pretrained(load_model(source, "float32", "cpu"), str(adapter)).eval()
    with torch.inference_mode():
        wanted = peft(IDS).logits
        torch.testing.assert_close(load_model(ours, "float32", "cpu")(IDS).logits, wanted, rtol=1e-5, atol=1e-5)
        assert (load_model(source, "float32", "cpu")(IDS).logits - wanted).abs().max() > 0.1
    assert find_adapted_model(str(source), adapter) == ours
    assert (ours / "model.safetensors").stat().st_mtime_ns == stamp
    assert str(tmp_path) not in (adapter / "adapter_config.json").read_text()


def test_an_adapter_for_another_base_or_a_changed_one_is_refused(source, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"was trained for .*source \(weights .*other has weights .*another model"):
        find_adapted_model(str(other), adapter)
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"which have changed since; .*zerogr train queries DATA OUT"):
        find_adapted_model(str(source), adapter)


def test_a_base_with_other_prompts_is_refused_and_one_written_anew_is_not(source, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "transformers_version": "99.0"}))
    find_adapted_model(str(source), adapter)
    template = source / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|>\n"))
    with pytest.raises(ModelError, match="prompts"):
        find_adapted_model(str(source), adapter)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("zerogr.json", None, "has no zerogr.json"),
        ("adapter_model.safetensors", None, "has no adapter_model.safetensors"),
        ("zerogr.json", "{}", "cannot be read as an adapter: KeyError"),
        ("zerogr.json", '{"format": 7}', "has format 7, this version reads 1"),
        ("adapter_config.json", "no json", "cannot be read as an adapter"),
        ("adapter_config.json", '{"r": 4, "lora_alpha": 8, "use_dora": true}', "uses use_dora"),
    ],
)
def test_a_folder_that_is_no_adapter_of_ours_is_refused(adapter, name, content, complaint):
    (adapter / name).unlink()
    if content is not None:
        (adapter / name).write_text(content)
    with pytest.raises(ModelError, match=complaint):
        read_adapter(adapter)


def test_an_adapter_that_lacks_a_matrix_is_refused(source, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not hold A and B of every layer"):
        find_adapted_model(str(source), adapter)
    assert not list((tmp_path / "cache").glob("models/*"))


def test_training_starts_from_the_base_and_the_seed_decides_the_rest(source):
    base = load_model(source, "float32", "cpu")
    with torch.inference_mode():
        wanted = base(IDS).logits
        models = [
            prepared(load_model(source, "float32", "cpu"), LORA.model_copy(update={"seed": s})) for s in (1, 1, 2)
        ]
        torch.testing.assert_close(models[0](IDS).logits, wanted)
    first = [{n: p for n, p in model.named_parameters() if "lora_A" in n} for model in models]
    assert all(torch.equal(first[0][name], first[1][name]) for name in first[0])
    assert not all(torch.equal(first[0][name], first[2][name]) for name in first[0])


def test_full_training_is_the_model_itself():
    model = tiny_model(VOCAB)
    assert prepared(model, TrainingConfig()) is model is merged(model)


def test_the_adapters_that_come_with_the_package_were_not_trained_on_what_they_are_judged_by():
    abouts = {folder.parent.name: json.loads(folder.read_text()) for folder in sorted(SHIPPED.glob(f"*/{ABOUT}"))}
    assert {about["task"] for about in abouts.values()} == {"queries", "docids"}
    for name, about in abouts.items():
        assert about["rows"], name
        assert not about["rows"].keys() & {"metatool", "scifact", "toollens", "api-torchhub", "adi", "limit-small"}, (
            name
        )
        card = (SHIPPED / name / "README.md").read_text()
        for words in ("Licence: Apache-2.0", "zerogr train", "Not trained on: ", "held-out loss"):
            assert words in card, name
        assert sum(file.stat().st_size for file in (SHIPPED / name).iterdir()) < 8e6, "a few MB"
