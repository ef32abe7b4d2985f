"""The plain engine against plain forwards of the same model, and the worker around it."""

import os
import random

import pytest
import torch

from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.policy.weights import pack, unpack
from dro_rl.prompts import PromptWriter, read_selection
from dro_rl.recipe import Recipe
from dro_rl.records import Document, Example
from dro_rl.rollout.engine import Usage
from dro_rl.rollout.environment import engine_environment, has_gpu
from dro_rl.rollout.transformers_engine import TransformersEngine
from dro_rl.rollout.worker import RolloutWorker
from dro_rl.sections.policy import PolicySection
from dro_rl.sections.process import RolloutSection
from tests.models import make_llama, make_tokenizer, token_logps

pytestmark = pytest.mark.unit

TOKENIZER = make_tokenizer()
WRITER = PromptWriter(TOKENIZER, "plain", 100)
DRAW = random.Random(0)
PROMPTS = [(1, *DRAW.choices(range(3, 300), k=length)) for length in (5, 40, 17, 40, 3)]
SECTION = PolicySection(model="tiny", dtype="float32", max_length=128, max_new_tokens=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_llama(path, tokenizer=TOKENIZER)
    return path


@pytest.fixture
def model(folder):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def engine(folder, **rollout) -> TransformersEngine:
    settings = {"engine": "transformers", "max_sequences": 8} | rollout
    section = RolloutSection.model_validate(settings)
    return TransformersEngine(str(folder), section=SECTION, rollout=section, seed=0)


def test_sample_logps_are_the_models(folder, model):
    groups = engine(folder).generate(PROMPTS, samples=4, seed=1)
    assert [len(g) for g in groups] == [4] * len(PROMPTS)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for sample in group:
            expected = token_logps(model, prompt, sample.token_ids)
            assert sample.logps == pytest.approx(expected, abs=1e-4)


def test_samples_end_with_the_first_end_of_sequence_or_the_limit(folder):
    samples = [s for g in engine(folder).generate(PROMPTS, samples=40, seed=1) for s in g]
    ends = [s.token_ids[-1] == TOKENIZER.eos_token_id for s in samples]
    assert any(ends) and not all(ends)
    for sample, ended in zip(samples, ends, strict=True):
        assert TOKENIZER.eos_token_id not in sample.token_ids[:-1]
        assert ended or len(sample.token_ids) == SECTION.max_new_tokens


def test_samples_follow_the_distribution(folder, model):
    groups = engine(folder, max_sequences=2000).generate(PROMPTS[:1], samples=2000, seed=0)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([s.token_ids[0] for s in groups[0]]), minlength=400)
    assert (counts / 2000 - expected).abs().max() < 0.055  # five standard errors


def test_greedy_takes_the_likeliest_token(folder, model):
    for prompt, group in zip(
        PROMPTS, engine(folder).generate(PROMPTS, samples=1, seed=0, greedy=True), strict=True
    ):
        out = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=SECTION.max_new_tokens
        )
        assert list(group[0].token_ids) == out[0, len(prompt) :].tolist()


def test_equal_seeds_give_equal_samples(folder):
    one = engine(folder)
    first = one.generate(PROMPTS, samples=3, seed=5)
    assert one.generate(PROMPTS, samples=3, seed=6) != first
    assert one.generate(PROMPTS, samples=3, seed=5) == first


@pytest.mark.parametrize("greedy", [False, True])
def test_distinct_samples_are_valid_and_scored_under_the_grammar(folder, model, greedy):
    grammars = [SelectionGrammar(WRITER, n, 2) for n in (3, 12, 12, 5, 2)]
    groups = engine(folder).generate(
        PROMPTS, samples=1 if greedy else 6, seed=2, greedy=greedy, grammars=grammars
    )
    for prompt, grammar, group in zip(PROMPTS, grammars, groups, strict=True):
        for sample in group:
            allowed = grammar.allowed_table(sample.token_ids)
            expected = token_logps(model, prompt, sample.token_ids, allowed)
            assert sample.logps == pytest.approx(expected, abs=1e-4)
            if sample.token_ids[-1] == TOKENIZER.eos_token_id:
                assert not read_selection(WRITER.decode(sample.token_ids), grammar.n, 2)[1]


def test_temperature_and_truncation_are_in_the_logps(folder, model):
    warm = engine(folder, temperature=0.5, top_k=3, allow_biased_sampling=True)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 0.5
    expected = logits.topk(3).values.log_softmax(-1)
    tokens = logits.topk(3).indices.tolist()
    for sample in warm.generate(PROMPTS[:1], samples=20, seed=0)[0]:
        assert sample.logps[0] == pytest.approx(
            expected[tokens.index(sample.token_ids[0])].item(), abs=1e-4
        )


def test_nucleus_keeps_the_fewest_tokens_that_reach_top_p(folder, model):
    narrow = engine(folder, top_p=0.5, allow_biased_sampling=True)
    with torch.no_grad():
        p = model(torch.tensor([PROMPTS[1]])).logits[0, -1].softmax(-1).sort(descending=True)
    count = int((p.values.cumsum(0) < 0.5).sum()) + 1
    seen = {s.token_ids[0] for s in narrow.generate([PROMPTS[1]], samples=300, seed=0)[0]}
    assert seen <= set(p.indices[:count].tolist())


def test_prompts_are_computed_once_for_all_their_samples(folder):
    one = engine(folder)
    groups = one.generate(PROMPTS, samples=4, seed=1)
    again = one.generate(PROMPTS[:2], samples=1, seed=1)
    tokens, two = sum(map(len, PROMPTS)), sum(map(len, PROMPTS[:2]))
    sampled = sum(len(s.token_ids) for g in [*groups, *again] for s in g)
    assert one.usage == Usage(4 * tokens + two, 3 * tokens, sampled)
    assert one.usage.prefix_cache_hits == pytest.approx(3 * tokens / (4 * tokens + two))


def test_score_is_the_models(folder, model):
    completion = (7, 8, 9, 2)
    scored = engine(folder).score(PROMPTS[1], completion)
    assert scored == pytest.approx(token_logps(model, PROMPTS[1], completion), abs=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_new_weights_replace_the_old(tmp_path, tied):
    make_llama(tmp_path / "old", tokenizer=TOKENIZER, tied=tied)
    new = make_llama(tmp_path / "new", tokenizer=TOKENIZER, seed=9, tied=tied)
    weights = {n: w for n, w in new.state_dict().items() if not (tied and n == "lm_head.weight")}
    one = engine(tmp_path / "old")
    one.load_weights(unpack(pack(weights.items())))
    assert one.score(PROMPTS[0], (5, 6)) == pytest.approx(
        token_logps(new, PROMPTS[0], (5, 6)), abs=1e-4
    )
    with pytest.raises(RuntimeError, match="nonsense"):
        one.load_weights({**weights, "nonsense": torch.zeros(1)})


def test_bfloat16_weights_keep_their_bits():
    weights = {"a": torch.randn(3, 4).bfloat16(), "b": torch.randn(5), "c": torch.tensor(2)}
    back = unpack(pack(weights.items()))
    assert list(back) == list(weights)
    for name, tensor in weights.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


def test_a_process_without_a_gpu_gets_the_cpu_variables(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not has_gpu()
    variables = engine_environment(RolloutSection(cpu_cache_gib=3), threads=2)
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3" and variables["OMP_NUM_THREADS"] == "2"


@pytest.fixture
def recipe():
    before = dict(os.environ)
    yield Recipe.model_validate(
        {
            "data": {"kind": "jsonl", "path": "unused"},
            "retrieval": {"kind": "given", "candidates": 3},
            "selector": SECTION.model_dump() | {"documents": 2},
            "generator": SECTION.model_dump(),
            "rollout": {"engine": "transformers", "decoding": "distinct", "max_sequences": 8},
        }
    )
    os.environ.clear()
    os.environ.update(before)


EXAMPLES = [
    Example(f"q{i}", f"Who keeps Lake {i}?", ("Mila",), tuple(Document(f"T{j}", "x") for j in "ab"))
    for i in range(3)
]


def test_the_worker_makes_rollouts(folder, recipe):
    worker = RolloutWorker(recipe, "selector", str(folder))
    rollouts = worker.select(EXAMPLES, samples=4, seed=0)
    assert [r.example for r in rollouts] == EXAMPLES and {r.version for r in rollouts} == {0}
    for selection in (s for r in rollouts for s in r.selections):
        assert (selection.documents, selection.malformed) == read_selection(selection.text, 2, 2)
        assert len(selection.logps) == len(selection.token_ids)
    probed = worker.probe(rollouts[0].prompt_ids, rollouts[0].selections[0].token_ids)
    assert all(p < 0 for p in probed)
    assert worker.ready()["engine"] == "transformers"


def test_the_worker_takes_weights_with_their_version(folder, recipe, tmp_path):
    worker = RolloutWorker(recipe, "selector", str(folder))
    before = worker.select(EXAMPLES, samples=4, seed=0)
    worker.load_weights(
        pack(make_llama(tmp_path, tokenizer=TOKENIZER, seed=3).state_dict().items()), 7
    )
    after = worker.select(EXAMPLES, samples=4, seed=0)
    assert {r.version for r in after} == {7}
    assert [r.selections for r in after] != [r.selections for r in before]


def test_the_worker_answers_from_the_selected_documents_in_order(folder, recipe):
    worker = RolloutWorker(recipe, "generator", str(folder))
    chosen = [(0, 1), (1, 0), (), (0, 1)]
    answers = worker.answer([*EXAMPLES, EXAMPLES[0]], chosen)
    assert len(answers) == 4 and answers[0] == answers[3]
    assert answers[:1] == worker.answer(EXAMPLES[:1], chosen[:1])


def test_on_policy_samples_ignore_the_recipes_temperature(folder):
    hot = engine(folder, temperature=3.0, top_k=5, allow_biased_sampling=True)
    got = hot.generate(PROMPTS, samples=4, seed=1, on_policy=True)
    assert got == engine(folder).generate(PROMPTS, samples=4, seed=1)
    assert got != hot.generate(PROMPTS, samples=4, seed=1)
