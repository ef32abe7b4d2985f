"""The vLLM engine against float32 forwards of the same model.

The engine lives in a spawned process of its own, started once, since it changes its host; the
tests send it calls and compare here.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.policy.weights import pack
from dro_rl.prompts import Prompt, PromptWriter, read_selection
from dro_rl.records import Document, Example
from dro_rl.rollout.engine import Usage
from dro_rl.rollout.environment import engine_environment, has_gpu
from dro_rl.sections.policy import PolicySection
from dro_rl.sections.process import RolloutSection
from tests.models import make_llama, make_tokenizer, token_logps

pytest.importorskip("vllm", reason="vLLM does not support this machine")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TOKENIZER = make_tokenizer()
EOS = TOKENIZER.eos_token_id
DRAW = random.Random(0)
PROMPTS = [(1, *DRAW.choices(range(3, 300), k=n)) for n in (5, 90, 33, 90, 64, 3) * 3]
SECTION = PolicySection(model="tiny", dtype="float32", max_length=128, max_new_tokens=9)
ROLLOUT = RolloutSection(max_sequences=32)
TOLERANCE = 1e-4


class Host:
    """An engine in another process: `host(name, method, ...)` calls a method of a model's."""

    def __init__(self, models: dict[str, str], rollout: RolloutSection = ROLLOUT) -> None:
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        before = dict(os.environ)
        os.environ.update(engine_environment(rollout, threads=1))
        # A daemon may not start the processes of an engine of several.
        daemon = rollout.tensor_parallel == 1
        self._process = context.Process(target=serve, args=(theirs, models, rollout), daemon=daemon)
        self._process.start()
        os.environ.clear()
        os.environ.update(before)

    def __call__(self, model: str, method: str, *args: Any, **kwargs: Any) -> Any:
        self._pipe.send((model, method, args, kwargs))
        ok, value = self._pipe.recv()
        assert ok, value
        return value

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def serve(pipe: Connection, models: dict[str, str], rollout: RolloutSection) -> None:
    from dro_rl.policy.weights import unpack
    from dro_rl.rollout.vllm_engine import VllmEngine

    engines: dict[str, VllmEngine] = {}
    while True:
        model, method, args, kwargs = pipe.recv()
        try:
            if model not in engines:
                engines[model] = VllmEngine(models[model], section=SECTION, rollout=rollout, seed=0)
            if method == "load_weights":
                args = (unpack(args[0]),)
            if grammars := kwargs.get("grammars"):
                writer = PromptWriter(make_tokenizer(), "plain", 100)
                kwargs["grammars"] = [
                    SelectionGrammar(writer, n, k).without(gone) for n, k, *gone in grammars
                ]
            if method == "take_usage":
                usage, engines[model].usage = engines[model].usage, Usage()
                pipe.send((True, usage))
                continue
            pipe.send((True, getattr(engines[model], method)(*args, **kwargs)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def models(folder):
    return {
        "untied": make_llama(folder / "untied", tokenizer=TOKENIZER, seed=1),
        "tied": make_llama(folder / "tied", tokenizer=TOKENIZER, seed=2, tied=True),
    }


@pytest.fixture(scope="module")
def host(folder, models):
    started = Host({name: str(folder / name) for name in models})
    yield started
    started.close()


def assert_logps(model, groups, tolerance=TOLERANCE):
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for sample in group:
            expected = token_logps(model, prompt, sample.token_ids)
            assert sample.logps == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", ["untied", "tied"])
def test_sample_logps_are_the_models(host, models, name):
    groups = host(name, "generate", PROMPTS, samples=4, seed=1)
    assert [len(g) for g in groups] == [4] * len(PROMPTS)
    assert_logps(models[name], groups)


def test_samples_end_with_the_first_end_of_sequence_or_the_limit(host):
    samples = [s for g in host("untied", "generate", PROMPTS, samples=8, seed=2) for s in g]
    ends = [s.token_ids[-1] == EOS for s in samples]
    assert any(ends) and not all(ends)
    for sample, ended in zip(samples, ends, strict=True):
        assert EOS not in sample.token_ids[:-1] and len(sample.logps) == len(sample.token_ids)
        assert ended or len(sample.token_ids) == SECTION.max_new_tokens


def test_distinct_samples_are_valid_and_scored_under_the_grammar(host, models):
    sizes = [(DRAW.randint(1, 20), 2) for _ in PROMPTS]
    writer = PromptWriter(TOKENIZER, "plain", 100)
    groups = host("untied", "generate", PROMPTS, samples=4, seed=3, grammars=sizes)
    whole = 0
    for prompt, (n, k), group in zip(PROMPTS, sizes, groups, strict=True):
        grammar = SelectionGrammar(writer, n, k)
        for sample in group:
            allowed = grammar.allowed_table(sample.token_ids)
            expected = token_logps(models["untied"], prompt, sample.token_ids, allowed)
            assert sample.logps == pytest.approx(expected, abs=TOLERANCE)
            if sample.token_ids[-1] == EOS:
                whole += 1
                assert not read_selection(writer.decode(sample.token_ids), n, k)[1]
    assert whole > len(PROMPTS)


@pytest.mark.parametrize("distinct", [False, True])
def test_greedy_is_the_plain_engines_greedy(host, folder, models, distinct):
    from dro_rl.rollout.transformers_engine import TransformersEngine

    plain = TransformersEngine(str(folder / "tied"), section=SECTION, rollout=ROLLOUT, seed=0)
    writer = PromptWriter(TOKENIZER, "plain", 100)
    grammars = [SelectionGrammar(writer, 7, 2) for _ in PROMPTS] if distinct else None
    expected = plain.generate(PROMPTS, samples=1, seed=0, greedy=True, grammars=grammars)
    sizes = [(7, 2) for _ in PROMPTS] if distinct else None
    got = host("tied", "generate", PROMPTS, samples=1, seed=0, greedy=True, grammars=sizes)
    assert [g[0].token_ids for g in got] == [g[0].token_ids for g in expected]


def test_prefix_cache_hits_are_counted_sample_by_sample(host):
    """Prompts that share nothing: each sample but the first reads the whole blocks of 32 tokens,
    less the last token, which vLLM always computes. Prompts that are the same share likewise."""
    before = host("untied", "take_usage")
    assert before.prompt_tokens > 0
    prompts = [(7, *DRAW.choices(range(3, 300), k=n - 1)) for n in (5, 33, 64, 100)]
    blocks = [0, 32, 32, 96]
    groups = host("untied", "generate", prompts, samples=4, seed=1)
    host("untied", "score", prompts[3], (5, 6))
    sampled = sum(len(s.token_ids) for g in groups for s in g)
    assert host("untied", "take_usage") == Usage(4 * 202, 3 * sum(blocks), sampled)
    host("untied", "generate", [prompts[3]] * 3, samples=2, seed=1)
    assert host("untied", "take_usage").cached_tokens == 5 * 96
    assert host("untied", "take_usage") == Usage()


class Remote:
    """A model's engine in the host, as the ranker wants it."""

    def __init__(self, host: Host, model: str) -> None:
        self.host, self.model = host, model

    def generate(self, prompts: list, *, grammars: list[SelectionGrammar], **kwargs: Any) -> Any:
        described = [(g.n, g.k, *g.excluded) for g in grammars]
        return self.host(self.model, "generate", prompts, grammars=described, **kwargs)


@pytest.mark.parametrize("n", [7, 12])
def test_documents_ranked_by_themselves_are_the_plain_engines(host, folder, models, n):
    """Ranking and log-probabilities; identifiers are of three tokens, and of four beyond [9]."""
    from dro_rl.rollout.independent import IndependentRanker
    from dro_rl.rollout.transformers_engine import TransformersEngine

    plain = TransformersEngine(str(folder / "untied"), section=SECTION, rollout=ROLLOUT, seed=0)
    writer = PromptWriter(TOKENIZER, "plain", 100)
    prompts = [Prompt(p) for p in PROMPTS[:6]]
    examples = [Example(f"q{i}", "", (), (Document("", ""),) * n) for i in range(6)]
    ours, theirs = (
        IndependentRanker(engine, writer).single(examples, prompts, n)
        for engine in (plain, Remote(host, "untied"))
    )
    for one, other in zip(ours, theirs, strict=True):
        assert [s.documents for s in one] == [s.documents for s in other]
        assert len({s.documents for s in one}) == n
        assert [s.logp for s in one] == pytest.approx([s.logp for s in other], abs=TOLERANCE)


def test_equal_seeds_give_equal_samples_whatever_came_before(host):
    first = host("untied", "generate", PROMPTS, samples=4, seed=5)
    host("untied", "generate", PROMPTS[:7], samples=1, seed=0, greedy=True)
    host("tied", "generate", PROMPTS, samples=2, seed=5)
    assert host("untied", "generate", PROMPTS, samples=4, seed=6) != first
    assert host("untied", "generate", PROMPTS, samples=4, seed=5) == first


@pytest.mark.parametrize("name", ["untied", "tied"])
def test_score_is_the_models_up_to_a_full_context(host, models, name):
    host(name, "generate", PROMPTS[:2], samples=1, seed=0)  # so that a prefix is cached
    for prompt, length in ((PROMPTS[1], 4), (PROMPTS[0], 1), (PROMPTS[1], 128 - len(PROMPTS[1]))):
        completion = tuple(range(10, 10 + length))
        expected = token_logps(models[name], prompt, completion)
        assert host(name, "score", prompt, completion) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["untied", "tied"])
def test_new_weights_replace_the_old_and_their_cache(host, models, name, tmp_path):
    host(name, "generate", PROMPTS, samples=2, seed=1)  # fills the prefix cache
    new = make_llama(tmp_path, tokenizer=TOKENIZER, seed=9, tied=name == "tied")
    weights = pack(new.state_dict().items())
    if name == "tied":  # as checkpoints are, and the learner's weights
        weights.pop("lm_head.weight")
    host(name, "load_weights", weights)
    assert_logps(new, host(name, "generate", PROMPTS, samples=4, seed=1))
    host(name, "load_weights", pack(models[name].state_dict().items()))
    assert_logps(models[name], host(name, "generate", PROMPTS, samples=2, seed=1))


@pytest.mark.skipif(has_gpu(), reason="compares two processes bit by bit")
def test_another_process_draws_the_same_samples(host, folder, models):
    other = Host({"untied": str(folder / "untied")})
    try:
        theirs = other("untied", "generate", PROMPTS, samples=4, seed=5)
    finally:
        other.close()
    assert theirs == host("untied", "generate", PROMPTS, samples=4, seed=5)


@pytest.mark.skipif(has_gpu(), reason="takes two GPUs where there are any")
def test_a_model_divided_among_two_processes_samples_scores_and_learns_as_in_one(
    host, folder, models, tmp_path
):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(
        '{"model_type": "llama", "num_attention_heads": 3, "hidden_size": 48}'
    )
    divided = ROLLOUT.model_copy(update={"tensor_parallel": 2})
    two = Host({"tied": str(folder / "tied"), "odd": str(tmp_path / "odd")}, divided)
    try:
        for more in ({}, {"grammars": [(6, 3)] * len(PROMPTS)}):
            ours = two("tied", "generate", PROMPTS, samples=2, seed=5, **more)
            one = host("tied", "generate", PROMPTS, samples=2, seed=5, **more)
            assert [[s.token_ids for s in g] for g in ours] == [
                [s.token_ids for s in g] for g in one
            ]
            if not more:
                assert_logps(models["tied"], ours)
        new = make_llama(tmp_path, tokenizer=TOKENIZER, seed=9, tied=True)
        weights = pack(new.state_dict().items())
        weights.pop("lm_head.weight")
        two("tied", "load_weights", weights)
        expected = token_logps(new, PROMPTS[1], (5, 6, 7))
        assert two("tied", "score", PROMPTS[1], (5, 6, 7)) == pytest.approx(expected, abs=TOLERANCE)
        assert_logps(new, two("tied", "generate", PROMPTS, samples=2, seed=1))
        with pytest.raises(AssertionError, match="2 does not divide the 3 attention heads of"):
            two("odd", "score", PROMPTS[1], (5,))
    finally:
        two.close()
