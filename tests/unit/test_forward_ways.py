"""Which way a model is read, packed or dense, what is refused, and what each way costs."""

import random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    GptOssConfig,
    MambaConfig,
    MistralConfig,
    NemotronConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from dro_rl.errors import UserError
from dro_rl.policy import attention
from dro_rl.policy.completion import Completion
from dro_rl.policy.likelihood import Likelihood, batches
from tests.likelihoods import RAGGED, SMALL
from tests.models import make_llama

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"), hidden=32, context=64)


# --- which way --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (MistralConfig(**SMALL, sliding_window=16), "sliding window"),
        (Qwen2Config(**SMALL, use_sliding_window=True, max_window_layers=1), "sliding attention"),
        (Gemma2Config(**SMALL, head_dim=16), "sliding attention"),
        (Gemma2Config(**SMALL, head_dim=16, layer_types=["full_attention"] * 2), "soft-capped"),
        (
            GptOssConfig(**SMALL, head_dim=16, num_local_experts=2, num_experts_per_tok=1),
            "sliding attention",
        ),
        (
            GptOssConfig(
                **SMALL,
                head_dim=16,
                num_local_experts=2,
                num_experts_per_tok=1,
                layer_types=["full_attention"] * 2,
            ),
            "sinks",
        ),
        (Cohere2Config(**SMALL, layer_types=["full_attention"] * 2), "logits are scaled"),
        (
            Qwen3NextConfig(**SMALL, head_dim=16, num_experts=4, num_experts_per_tok=2),
            "linear attention",
        ),
        (MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, state_size=4), ""),
    ],
    ids=lambda value: getattr(value, "model_type", None) or str(value).replace(" ", "-"),
)
def test_models_of_other_attention_take_the_dense_way(config, why):
    likelihood = Likelihood(AutoModelForCausalLM.from_config(config))
    assert likelihood.why_dense is not None and why in likelihood.why_dense
    assert likelihood.describe() == f"dense ({likelihood.why_dense})"
    assert likelihood.of(RAGGED).isfinite().all()


def wrong(q, k, v, packed, scale):
    """Attention over the row as if it were one sequence."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def test_attention_that_leaks_is_refused_when_something_is_shared(llama, monkeypatch):
    """Also where a completion alone, which cannot show it, came first."""
    monkeypatch.setattr(attention, "_by_blocks", wrong)
    likelihood = Likelihood(llama)
    likelihood.of(RAGGED[:1])
    prompt = tuple(range(3, 40))
    with pytest.raises(UserError, match="differs from the plain one by .* likelihood: dense"):
        likelihood.of([Completion(prompt, (5, 6)), Completion(prompt, (7, 8))])


def test_attention_that_leaks_between_questions_is_refused(llama, monkeypatch):
    monkeypatch.setattr(attention, "_by_blocks", wrong)
    with pytest.raises(UserError, match="differs"):
        Likelihood(llama).of(RAGGED)


def test_a_model_that_reads_more_than_its_configuration_says_is_refused(llama, monkeypatch):
    """Its logits do not come from its output embedding alone."""
    forward = type(llama).forward

    def scaled(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    monkeypatch.setattr(type(llama), "forward", scaled)
    with pytest.raises(UserError, match="differs from the plain one by .* likelihood: dense"):
        Likelihood(llama).of(RAGGED)
    assert Likelihood(llama, "dense").of(RAGGED).isfinite().all()


def test_a_model_that_keeps_its_own_attention_takes_the_dense_way(capsys):
    """Nemotron chooses when it is made."""
    config = NemotronConfig(**SMALL)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    likelihood = Likelihood(model)
    alone = likelihood.of(RAGGED[:1])
    found = likelihood.of(RAGGED)
    torch.testing.assert_close(alone, found[:1])
    assert "dense" in capsys.readouterr().out and "dense" in likelihood.describe()
    torch.testing.assert_close(found, Likelihood(model, "dense").of(RAGGED))


# --- what it costs ------------------------------------------------------------------------------


def test_the_shared_prompt_goes_through_the_model_once(llama):
    """Tokens, forward passes and logits, which no machine changes."""
    rng = random.Random(0)
    prompt = tuple(rng.randrange(3, 300) for _ in range(40))
    completions = [Completion(prompt, (10 + i, 20, 2)) for i in range(8)]
    seen, heads = [], []
    likelihood = Likelihood(llama)
    likelihood.of(completions)  # checks itself
    body = llama.model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    head = llama.lm_head.register_forward_hook(lambda m, args, out: heads.append(out.shape[:-1]))
    likelihood.of(completions)
    body.remove()
    head.remove()
    assert seen == [40 + 8 * 2]
    places = sum(shape.numel() for shape in heads)
    assert places == 1 + (1 + 8 * 2)  # one that the model makes, the prompt's end, 2 a completion
    assert likelihood.cost(completions) == 56
    assert Likelihood(llama, "dense").cost(completions) == 8 * 42


def test_batches_fill_the_budget_and_keep_groups_whole(llama):
    likelihood = Likelihood(llama)
    groups = [[Completion((1,) * n, (5, 2))] for n in (9, 9, 9, 50, 9)]  # a token more each
    found = [(part.start, part.stop) for part in batches(likelihood, groups, 20)]
    assert found == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert list(batches(likelihood, [], 20)) == []


def test_batches_of_the_dense_way_count_its_padding(llama):
    """A long row pads all others to its length."""
    likelihood = Likelihood(llama, "dense")
    groups = [[Completion((1,) * 9, (5, 2))] * 2 for _ in range(4)]
    groups.append([Completion((1,) * 50, (5, 2))])
    runs = [groups[part] for part in batches(likelihood, groups, 100)]
    assert [len(run) for run in runs] == [4, 1]
    for run in runs:
        assert likelihood.cost([c for group in run for c in group]) <= 100


def test_what_fails_in_the_trie_alone_names_the_way_out(llama, monkeypatch):
    def broken(*args):
        raise RuntimeError("size of tensor a must match")

    monkeypatch.setattr(attention, "_by_blocks", broken)
    with pytest.raises(UserError, match="fails .*size of tensor a.* likelihood: dense"):
        Likelihood(llama).of(RAGGED)
