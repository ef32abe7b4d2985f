"""Policies on disk: found, loaded, adapted, merged, saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dro_rl.errors import UserError
from dro_rl.policy import causal_lm
from dro_rl.policy.causal_lm import load_model, load_tokenizer, resolve_model
from dro_rl.policy.lora import adapter_factors, add_lora
from dro_rl.policy.merging import merged_weights, save_policy
from dro_rl.records import Document
from dro_rl.sections.policy import PolicySection
from tests.models import make_llama, make_tokenizer, make_word_tokenizer

pytestmark = pytest.mark.unit

IDS = torch.tensor([[1, 40, 7, 120, 33, 5]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    make_llama(path, hidden=32)
    return path


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tied")
    make_llama(path, hidden=32, tied=True)
    return path


@pytest.fixture
def offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def section(folder: object = "model", **changes) -> PolicySection:
    settings = {"model": str(folder), "dtype": "float32", "max_length": 512, "prompt": "plain"}
    return PolicySection.model_validate(settings | changes)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS).logits.float()


# --- finding and loading ------------------------------------------------------------------------


def test_folders_and_hub_names_are_models(folder):
    assert resolve_model(str(folder)) == str(folder)
    assert resolve_model("Qwen/Qwen2.5-1.5B") == "Qwen/Qwen2.5-1.5B"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("builtin/no-such-model", "this package carries no such model"),
        ("./nowhere", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("~/no-such-folder-of-a-model", "no such folder"),
        ("runs/warm/selector", "no such folder, and not a hub name.*dro-rl warmup"),
        ("selector", "no such folder, and not a hub name"),
    ],
)
def test_a_name_that_is_no_model_is_refused(name, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name}: {told}"):
        resolve_model(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=f"{tmp_path}: not a model's folder.*config.json"):
        resolve_model(str(tmp_path))
    with pytest.raises(UserError, match="not a model's folder"):
        resolve_model(str(tmp_path / "notes.txt"))


def test_a_hub_name_without_a_hub_is_refused(offline):
    name = "no-such-owner/no-such-model"
    for load in (lambda: load_tokenizer(name), lambda: load_model(section(), name, training=False)):
        with pytest.raises(UserError, match=f"{name}: its .* could not be loaded"):
            load()


@pytest.mark.parametrize("broken", ["no weights", "half the weights", "no JSON", "unknown type"])
def test_a_broken_model_is_refused_by_name(folder, tmp_path, broken):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if broken == "no weights":
        weights.unlink()
    elif broken == "half the weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif broken == "no JSON":
        config.write_text("{")
    else:
        config.write_text(json.dumps({"model_type": "no_such_type"}))
    with pytest.raises(UserError, match=f"{tmp_path}: its model could not be loaded"):
        load_model(section(), str(tmp_path), training=False)


def test_a_model_without_a_tokenizer_is_refused_by_name(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{tmp_path}: its tokenizer could not be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_an_end_is_refused(tmp_path, folder):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_cannot_read_what_it_does_not_know_is_refused(tmp_path, folder):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    make_word_tokenizer(["Lake"]).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("Lake Orsa")
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"unk_token":"<pad>"', '"unk_token":"<unk>"'))
    path.write_text(path.read_text().replace('"unk_token": "<pad>"', '"unk_token": "<unk>"'))
    with pytest.raises(UserError, match="tokenizer could not be loaded .*Missing"):
        load_tokenizer(str(tmp_path))


def test_a_context_shorter_than_max_length_is_refused(folder):
    causal_lm.check_context(section(max_length=512), str(folder))
    with pytest.raises(UserError, match="max_length 513 exceeds the context .*512 tokens"):
        causal_lm.check_context(section(max_length=513), str(folder))


def test_weights_that_learn_are_float32_and_others_are_what_the_recipe_says(folder):
    half = section(dtype="bfloat16")
    assert load_model(half, str(folder), training=True).dtype == torch.float32
    assert load_model(half, str(folder), training=False).dtype == torch.bfloat16
    frozen = section(dtype="bfloat16", lora={"rank": 2})
    assert load_model(frozen, str(folder), training=True).dtype == torch.bfloat16


def test_prompts_leave_room_for_the_longest_completion(folder):
    writer = causal_lm.prompt_writer(section(max_length=300, max_new_tokens=40), str(folder))
    assert writer.max_tokens == 260
    documents = [Document("T", "the keeper " * 400)]
    assert len(writer.select("Who?", documents, 1).token_ids) == pytest.approx(260, abs=3)


# --- LoRA ---------------------------------------------------------------------------------------


def adapted(folder, **changes):
    """A model with LoRA adapters that change what it says."""
    settings = section(folder, **{"lora": {"rank": 4, "alpha": 8}, **changes})
    model = add_lora(load_model(settings, str(folder), training=True), settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    return model


@pytest.mark.parametrize("kind", ["folder", "tied_folder"])
def test_merged_weights_are_the_adapted_models_under_plain_names(kind, request):
    folder = request.getfixturevalue(kind)
    plain = load_model(section(), str(folder), training=False)
    names = {n for n in plain.state_dict() if not (kind == "tied_folder" and n == "lm_head.weight")}
    before = logits(plain)
    model = adapted(folder)
    wanted = logits(model)
    assert (wanted - before).abs().max() > 0.1  # the adapters do something
    merged = dict(merged_weights(model))
    assert set(merged) == names
    plain.load_state_dict(merged, strict=kind == "folder")
    torch.testing.assert_close(logits(plain), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", ["q_proj", "embed_tokens"])
def test_adapters_of_any_matrix_are_two_factors_of_what_peft_adds(folder, target):
    model = adapted(folder, lora={"rank": 4, "alpha": 6, "target_modules": [target]})
    factors = dict(adapter_factors(model))
    deltas = {
        name: module.get_delta_weight("default")
        for name, module in model.get_base_model().named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert deltas and len(factors) == 2 * len(deltas)
    for name, delta in deltas.items():
        left, right = factors[f"{name}.weight:left"], factors[f"{name}.weight:right"]
        assert 4 in left.shape and 4 in right.shape and delta.abs().max() > 0.01
        torch.testing.assert_close(left @ right, delta)


def test_merging_leaves_the_model_untouched(folder):
    model = adapted(folder)
    before = {n: w.clone() for n, w in model.state_dict().items()}
    for _ in range(3):
        dict(merged_weights(model))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_fresh_adapters_change_nothing_and_are_all_that_learns(folder):
    settings = section(folder, lora={"rank": 4}, dtype="bfloat16")
    model = add_lora(load_model(settings, str(folder), training=True), settings)
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert learning and all("lora_" in n for n in learning)
    assert {p.dtype for p in learning.values()} == {torch.float32}
    plain = load_model(settings, str(folder), training=False)
    for name, weight in merged_weights(model):
        assert torch.equal(weight, plain.state_dict()[name]), name


def test_merged_weights_of_a_plain_model_are_its_own(tied_folder):
    model = load_model(section(), str(tied_folder), training=True)
    merged = dict(merged_weights(model))
    assert "lm_head.weight" not in merged
    assert set(model.state_dict()) - set(merged) == {"lm_head.weight"}


# --- saving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "tied_folder"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_saved_policy_is_a_plain_checkpoint_with_the_same_logits(kind, lora, request, tmp_path):
    source = request.getfixturevalue(kind)
    model = adapted(source) if lora else load_model(section(), str(source), training=True)
    save_policy(model, load_tokenizer(str(source)), tmp_path / "out", torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out")("Lake Orsa")["input_ids"]
        == (load_tokenizer(str(source))("Lake Orsa")["input_ids"])
    )
    assert not list((tmp_path / "out").glob("adapter*"))


def test_a_policy_is_saved_in_its_own_dtype(folder, tmp_path):
    model = load_model(section(dtype="bfloat16"), str(folder), training=True)
    save_policy(model, load_tokenizer(str(folder)), tmp_path, torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert model.dtype == torch.float32  # what learns is left alone
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].bfloat16()), name
