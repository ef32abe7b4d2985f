"""LoRA adapters beside a base that stays as it is: what serves them says what the learner says."""

import pytest
import torch
from peft import PeftModel

from dro_rl.policy.adapters import add_served, load_factors, write_adapter
from dro_rl.policy.causal_lm import load_model
from dro_rl.policy.lora import LEFT, adapter_factors, add_lora
from dro_rl.policy.merging import load_weights, merged_weights
from dro_rl.sections.policy import PolicySection
from tests.models import make_llama

IDS = torch.tensor([[1, 40, 7, 120, 33, 5]])
LORA = {"selector": {"rank": 4, "alpha": 6}, "generator": {"rank": 2, "target_modules": ["q_proj"]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_llama(path, hidden=32)
    return path


def section(folder, policy: str, **lora) -> PolicySection:
    settings = {"model": str(folder), "dtype": "float32", "max_length": 512, "prompt": "plain"}
    return PolicySection.model_validate({**settings, "lora": {**LORA[policy], **lora}})


def learned(folder, **lora):
    """A base with both adapters, each of which changes what the model says."""
    model = load_model(section(folder, "selector"), str(folder), training=True)
    for policy in LORA:
        model = add_lora(model, section(folder, policy, **lora), policy)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    return model


@torch.no_grad()
def logits(model, policy: str | None = None) -> torch.Tensor:
    if policy is not None:
        model.set_adapter(policy)
    return model.eval()(IDS).logits


def test_the_last_adapter_is_the_active_one_and_learns_alone(folder):
    model = learned(folder)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning and all(".generator." in n and "q_proj" in n for n in learning)
    model.set_adapter("selector")
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning and all(".selector." in n for n in learning)
    assert not any("lm_head" in n for n in learning)


@pytest.mark.parametrize("policy", LORA)
def test_factors_and_merged_weights_are_those_of_the_active_adapter(folder, policy):
    model = learned(folder)
    wanted = logits(model, policy)
    plain = load_model(section(folder, policy), str(folder), training=False)
    assert (logits(plain) - wanted).abs().max() > 0.1
    ranks = {f.shape[1] for n, f in adapter_factors(model) if n.endswith(LEFT)}
    assert ranks == {LORA[policy]["rank"]}
    load_weights(plain, dict(merged_weights(model)))
    torch.testing.assert_close(logits(plain), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", ["all-linear", ["embed_tokens", "v_proj"]])
def test_what_serves_two_adapters_says_what_the_learner_says(folder, target):
    model = learned(folder, target_modules=target)
    served = load_model(section(folder, "selector"), str(folder), training=False)
    untouched = logits(served)
    for policy in LORA:
        served = add_served(served, section(folder, policy, target_modules=target), policy)
    assert torch.equal(logits(served, "selector"), untouched)
    for policy in LORA:
        model.set_adapter(policy)
        served.set_adapter(policy, inference_mode=True)
        load_factors(served, dict(adapter_factors(model)))
    for policy in LORA:
        apart = (logits(served, policy) - logits(model, policy)).abs().max()
        assert apart < 1e-4
    assert (logits(served, "selector") - logits(served, "generator")).abs().max() > 0.1


def test_factors_of_other_weights_are_refused(folder):
    model = learned(folder)
    model.set_adapter("generator")
    served = load_model(section(folder, "selector"), str(folder), training=False)
    served = add_served(served, section(folder, "selector"), "selector")
    with pytest.raises(RuntimeError, match=r"adapters of other weights: .*proj.weight:left"):
        load_factors(served, dict(adapter_factors(model)))


@pytest.mark.parametrize("policy", LORA)
def test_a_written_adapter_is_one_that_peft_reads(folder, policy, tmp_path):
    model = learned(folder)
    wanted = logits(model, policy)
    write_adapter(tmp_path, dict(adapter_factors(model)))
    plain = load_model(section(folder, policy), str(folder), training=False)
    read = PeftModel.from_pretrained(plain, tmp_path)
    torch.testing.assert_close(logits(read), wanted, atol=1e-4, rtol=1e-4)
