"""log p(completion | prompt), both ways, against the plainest forward there is: a row at a time."""

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from dro_rl.policy import forward
from dro_rl.policy.completion import Completion
from dro_rl.policy.likelihood import Likelihood
from dro_rl.policy.targets import Target, target_log_likelihoods
from tests.likelihoods import RAGGED, SMALL
from tests.models import make_llama

pytestmark = pytest.mark.unit

WAYS = ["auto", "dense"]
PLAIN = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
}


def selector_like(rng: random.Random) -> list[Completion]:
    """Selections of three questions, ragged, two of them equal, some with common beginnings."""
    completions = []
    for length in (330, 90, 11):
        prompt = ids(rng, length)
        first = ids(rng, 6)
        completions += [Completion(prompt, first), Completion(prompt, first)]
        completions += [Completion(prompt, first[:3] + ids(rng, rng.randint(1, 9)))]
        completions += [Completion(prompt, ids(rng, rng.randint(1, 9))) for _ in range(4)]
    return completions


def generator_like(rng: random.Random) -> list[Completion]:
    """The answer after the question and three of five documents, in any order, eight times."""
    documents, question = [ids(rng, 120) for _ in range(5)], ids(rng, 15)
    answer = ids(rng, 4)
    prompts = [(*question, *sum(rng.sample(documents, 3), ()), 3, 4) for _ in range(8)]
    return [Completion(p, answer) for p in prompts]


def nothing_in_common(rng: random.Random) -> list[Completion]:
    return [Completion(ids(rng, n), ids(rng, 3)) for n in (1, 2, 40, 300)]


SHAPES = {"selector": selector_like, "generator": generator_like, "apart": nothing_in_common}


def ids(rng: random.Random, n: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, 399) for _ in range(n))


def make_model(config, seed: int = 0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data *= 5  # logits that differ
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"), hidden=32, context=64)


@pytest.fixture(params=WAYS)
def likelihood(request, llama):
    return Likelihood(llama, request.param)


def plain(model, completion: Completion) -> torch.Tensor:
    row = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    logps = model(row).logits[0, :-1].float().log_softmax(-1)
    start = len(completion.prompt_ids) - 1
    return torch.stack([logps[start + i, t] for i, t in enumerate(completion.token_ids)])


def loss_and_gradient(likelihood: Likelihood, completions) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a weighted sum, the gradient flat."""
    weights = torch.linspace(-1, 2, len(completions))
    likelihood.model.zero_grad()
    logps = likelihood.of(completions)
    (weights * logps).sum().backward()
    grads = [p.grad for p in likelihood.model.parameters() if p.grad is not None]
    return logps.detach(), torch.cat([g.flatten() for g in grads])


def assert_same(found, wanted) -> None:
    torch.testing.assert_close(found[0], wanted[0], atol=1e-4, rtol=1e-5)
    assert (found[1] - wanted[1]).norm() < 1e-5 * wanted[1].norm()


# --- values -----------------------------------------------------------------------------------


def test_ragged_rows_equal_one_row_at_a_time(likelihood):
    got = likelihood.tokens(RAGGED)
    for row, completion in zip(got, RAGGED, strict=True):
        n = len(completion.token_ids)
        wanted = plain(likelihood.model, completion)
        torch.testing.assert_close(row[:n], wanted, atol=1e-5, rtol=0)
        assert torch.all(row[n:] == 0)


def test_the_gradient_equals_one_row_at_a_time(likelihood):
    _, found = loss_and_gradient(likelihood, RAGGED)
    likelihood.model.zero_grad()
    weights = torch.linspace(-1, 2, len(RAGGED))
    rows = [plain(likelihood.model, c).sum() for c in RAGGED]
    (weights * torch.stack(rows)).sum().backward()
    wanted = torch.cat([p.grad.flatten() for p in likelihood.model.parameters()])
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_allowed_tokens_renormalise(likelihood):
    """Two completions of one prompt, of which one was sampled under a mask."""
    masked = Completion((1, 7, 9, 12), (6, 2), [[5, 6, 7], [2]])
    free = Completion((1, 7, 9, 12), (6, 2))
    got = likelihood.tokens([masked, free])
    logits = likelihood.model(torch.tensor([[1, 7, 9, 12]])).logits[0, -1].float()
    wanted = logits[6] - logits[[5, 6, 7]].logsumexp(0)
    torch.testing.assert_close(got[0, 0], wanted, atol=1e-5, rtol=0)
    assert got[0, 1].item() == 0  # the only token allowed is certain
    torch.testing.assert_close(got[1], plain(likelihood.model, free), atol=1e-5, rtol=0)


def test_a_token_that_is_not_allowed_is_impossible(likelihood):
    got = likelihood.of([Completion((1, 7), (9, 2), [[5, 6], [2]])])
    assert got.tolist() == [-torch.inf]


def test_alternative_answers_add_up(likelihood):
    one, two = Completion((1, 7), (5, 2)), Completion((1, 7), (6, 9, 2))
    got = target_log_likelihoods(likelihood, [Target((one, two)), Target((one,))])
    parts = torch.stack([plain(likelihood.model, c).sum() for c in (one, two)])
    torch.testing.assert_close(got, torch.stack([parts.logsumexp(0), parts[0]]), atol=1e-5, rtol=0)


# --- the trie against the dense way -------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PLAIN)
def test_loss_and_gradient_of_the_trie_are_those_of_the_dense_way(name, shape):
    model, completions = make_model(PLAIN[name]), SHAPES[shape](random.Random(0))
    fast, slow = (Likelihood(model, way) for way in WAYS)
    assert fast.describe() == "trie"
    assert_same(loss_and_gradient(fast, completions), loss_and_gradient(slow, completions))


def test_gradient_checkpointing_changes_nothing():
    completions = generator_like(random.Random(1))
    model = make_model(PLAIN["llama"])
    wanted = loss_and_gradient(Likelihood(model, "dense"), completions)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_same(loss_and_gradient(Likelihood(model), completions), wanted)


def test_adapters_learn_the_same():
    """Also on the output embedding, which the trie's way calls by itself."""
    completions = selector_like(random.Random(2))
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"])
    model = get_peft_model(make_model(PLAIN["llama"]), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.manual_seed(0))
    found, wanted = (loss_and_gradient(Likelihood(model, way), completions) for way in WAYS)
    assert_same(found, wanted)


def test_bfloat16_is_as_near_to_float32_as_the_dense_way_is():
    completions = selector_like(random.Random(3))
    model = make_model(PLAIN["qwen2"])
    exact, _ = loss_and_gradient(Likelihood(model, "dense"), completions)
    errors = []
    for way in WAYS:
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = loss_and_gradient(Likelihood(model, way), completions)
        errors.append((found - exact).abs().mean())
    assert 0 < errors[0] < 2 * errors[1]


def test_chunks_of_logits_change_nothing(monkeypatch):
    completions = selector_like(random.Random(4))
    likelihood = Likelihood(make_model(PLAIN["llama"]))
    wanted = loss_and_gradient(likelihood, completions)
    monkeypatch.setattr(forward, "CHUNK", 400 * 7)  # seven places at a time
    assert_same(loss_and_gradient(likelihood, completions), wanted)


def test_values_are_read_where_the_log_likelihoods_are():
    completions = selector_like(random.Random(5))
    model, head = make_model(PLAIN["llama"]), torch.nn.Linear(32, 1)
    (logps, values), (logps_dense, values_dense) = (
        Likelihood(model, way).tokens_and_values(completions, head) for way in WAYS
    )
    torch.testing.assert_close(logps, logps_dense, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(values, values_dense, atol=1e-4, rtol=1e-5)
    assert len(values.unique()) > 20


def test_other_forwards_of_the_model_stay_as_they_were():
    """Padding on the left, as a trainer or `generate` would bring it."""
    model = make_model(PLAIN["llama"])
    row = torch.tensor([[0, 0, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(0)}
    wanted = model(row, **inputs).logits[:, 2:]
    Likelihood(model).of(RAGGED)
    torch.testing.assert_close(model(row, **inputs).logits[:, 2:], wanted)
    generated = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert generated.shape == (1, 7)


def test_the_saved_configuration_names_no_attention_of_ours(tmp_path):
    model = make_model(PLAIN["llama"])
    Likelihood(model)
    model.save_pretrained(tmp_path)
    assert "dro_rl" not in (tmp_path / "config.json").read_text()
    AutoModelForCausalLM.from_pretrained(tmp_path)
