"""Documents ranked by themselves, and taken from the retriever: selections that no policy writes.

The reference is a plain forward of the same model: p(d_k|x) is the probability of the identifier's
tokens among all identifiers'.
"""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from dro_rl.algorithms import Group, weigh
from dro_rl.inference import _results_matter
from dro_rl.learner import Learner
from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.policy.targets import answer_target, target_log_likelihoods
from dro_rl.prompts import PromptWriter, write_selection
from dro_rl.records import Document, Example, WeightedRollout
from dro_rl.reward.service import RewardService
from dro_rl.rollout.independent import IndependentRanker
from dro_rl.rollout.transformers_engine import TransformersEngine
from dro_rl.rollout.worker import RolloutWorker
from dro_rl.sections.policy import PolicySection
from dro_rl.sections.process import RolloutSection
from tests.models import make_llama, make_tokenizer, make_word_tokenizer, token_logps
from tests.tiny import WORDS, make_example, make_recipe, make_rollout

TOKENIZERS = {"words": make_word_tokenizer(WORDS), "pieces": make_tokenizer()}
SECTION = PolicySection(model="tiny", dtype="float32", max_length=512, max_new_tokens=9)
ROLLOUT = RolloutSection(engine="transformers", max_sequences=2000)


class Setting:
    """A model, its ranker, and questions of some numbers of documents; `exact` are log p(d_k|x)."""

    def __init__(
        self, folder, kind: str, sizes: list[int], seed: int = 3, scale: float = 1.5
    ) -> None:
        torch.set_num_threads(1)  # as the recipe's processes do; more are slower on tiny models
        tokenizer = TOKENIZERS[kind]
        self.model: LlamaForCausalLM = make_llama(
            folder, tokenizer=tokenizer, seed=seed, scale=scale
        )
        engine = TransformersEngine(str(folder), section=SECTION, rollout=ROLLOUT, seed=0)
        self.writer = PromptWriter(tokenizer, "plain", 500)
        self.ranker = IndependentRanker(engine, self.writer)
        self.examples = [
            Example(f"q{n}", "Where?", ("a",), tuple(Document(f"{i}", "x") for i in range(n)))
            for n in sizes
        ]
        self.prompts = [self.writer.select(e.question, e.candidates, 2) for e in self.examples]
        self.exact = []
        for n, prompt in zip(sizes, self.prompts, strict=True):
            grammar = SelectionGrammar(self.writer, n, 1)
            of_each = []
            for i in range(n):
                ids = self.writer.completion(write_selection([i]))
                allowed = grammar.allowed_table(ids)
                of_each.append(sum(token_logps(self.model, prompt.token_ids, ids, allowed)))
            self.exact.append(of_each)


# With "pieces", [12] is four tokens, and [1] of 12 shares its first two with [10], [11] and [12].
# That model likes [2] best, though "1" is the likeliest first digit.
CASES = {
    "words": ("words", [5, 3, 12]),
    "pieces": ("pieces", [5, 3]),
    "shared": ("pieces", [12], 12),
}


@pytest.fixture(scope="module", params=CASES)
def setting(request, tmp_path_factory):
    return Setting(tmp_path_factory.mktemp("llama"), *CASES[request.param])


def plackett_luce(logps: list[float], documents: tuple[int, ...]) -> float:
    """log-probability of drawing these documents in this order, without replacement."""
    total, left = 0.0, 1.0
    for d in documents:
        total += logps[d] - math.log(left)
        left -= math.exp(logps[d])
    return total


# --- the ranker ---------------------------------------------------------------------------------


def test_one_token_identifiers_have_the_softmax_of_their_logits(tmp_path):
    """The definition, without the grammar."""
    s = Setting(tmp_path, "words", [5])
    ids = [s.writer.completion(write_selection([i]))[0] for i in range(5)]
    logits = s.model(torch.tensor([s.prompts[0].token_ids])).logits[0, -1].float()
    assert s.exact[0] == pytest.approx(logits[ids].log_softmax(0).tolist(), abs=1e-5)


def test_single_gives_every_documents_probability_in_order(setting):
    """More are asked for than there are: each document once, the likeliest first, sum 1."""
    groups = setting.ranker.single(setting.examples, setting.prompts, 20)
    for exact, group in zip(setting.exact, groups, strict=True):
        assert [s.documents for s in group] == [
            (i,) for i in sorted(range(len(exact)), key=lambda i: -exact[i])
        ]
        for s in group:
            assert s.logp == pytest.approx(exact[s.documents[0]], abs=1e-4)
            assert s.token_ids == setting.writer.completion(s.text) and not s.malformed
            assert len(s.logps) == len(s.token_ids)
        assert sum(math.exp(s.logp) for s in group) == pytest.approx(1, abs=1e-4)


def test_single_stops_at_the_count(setting):
    """The likeliest three, with their probabilities among all."""
    groups = setting.ranker.single(setting.examples, setting.prompts, 3)
    for exact, group in zip(setting.exact, groups, strict=True):
        best = sorted(range(len(exact)), key=lambda i: -exact[i])[:3]
        assert [s.documents[0] for s in group] == best
        assert [s.logp for s in group] == pytest.approx([exact[i] for i in best], abs=1e-4)


@pytest.mark.parametrize("scale", [6.0, 12.0, 20.0])
def test_a_nearly_certain_selector_does_not_rule_the_others_out(tmp_path, scale):
    """Beside a probability that rounds to 1 the others' are known to float32's resolution alone:
    they may come out as large as that, 2^-24, but never far less likely than they are, which no
    likelihood of the answer could make up for."""
    s = Setting(tmp_path, "words", [5], scale=scale)
    (group,) = s.ranker.single(s.examples, s.prompts, 5)
    assert group[0].logp > -1e-3
    for selection in group[1:]:
        exact = s.exact[0][selection.documents[0]]
        assert selection.logp > exact - 0.05
        assert selection.logp < max(exact, math.log(2**-24)) + 0.05


def test_greedy_draws_the_likeliest_documents_in_one_selection(setting):
    groups = setting.ranker.draw(setting.examples, setting.prompts, 2, 1, 0, greedy=True)
    for exact, (selection,) in zip(setting.exact, groups, strict=True):
        best = tuple(sorted(range(len(exact)), key=lambda i: -exact[i])[:2])
        assert selection.documents == best
        assert selection.text == write_selection(best)
        assert selection.token_ids == setting.writer.completion(selection.text)
        assert selection.logp == pytest.approx(plackett_luce(exact, best), abs=1e-4)


def test_sampled_draws_follow_plackett_luce(setting):
    """Frequencies within 5 standard errors of each, and the log-probabilities of all that came."""
    samples = 400
    (group,) = setting.ranker.draw(
        setting.examples[:1], setting.prompts[:1], 2, samples, 7, greedy=False
    )
    exact = setting.exact[0]
    assert len(group) == samples
    counts = Counter(s.documents for s in group)
    for pair in itertools.permutations(range(len(exact)), 2):
        p = math.exp(plackett_luce(exact, pair))
        error = math.sqrt(p * (1 - p) / samples)
        assert abs(counts[pair] / samples - p) < 5 * error + 1e-3
    for s in group:
        assert s.logp == pytest.approx(plackett_luce(exact, s.documents), abs=1e-4)


def test_equal_seeds_draw_equal_selections(setting):
    def draw(seed):
        return setting.ranker.draw(
            setting.examples[:2], setting.prompts[:2], 2, 4, seed, greedy=False
        )

    first = draw(1)
    assert [len(group) for group in first] == [4] * len(setting.examples[:2])
    assert draw(1) == first != draw(2)


# --- through worker, reward and learners --------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("m", [5, 3])
def test_the_gradient_is_that_of_the_marginal_likelihood_of_the_best_documents(folder, m):
    """grad log sum_k p~(d_k|x) p_g(y|x,d_k) by autograd, p~ renormalised over the m likeliest
    (arXiv 2106.05346, eq. 4); of all five, p~ is p."""
    recipe = make_recipe(folder, algorithm={"kind": "independent", "samples": m})
    example = make_example(1)
    (rollout,) = RolloutWorker(recipe, "selector", recipe.selector.model).select([example], m, 0)
    (scored,) = RewardService(recipe, recipe.generator.model).score([rollout])
    group = Group("q1", scored.log_rewards, None, tuple(s.logp for s in rollout.selections), 0, ())
    (c,), _ = weigh(recipe.algorithm, [group])
    selector, generator = (
        Learner(recipe, p, recipe.policy(p).model, 10, 1e-3) for p in ("selector", "generator")
    )
    ids = [selector.writer.completion(write_selection([i]))[0] for i in range(5)]
    logits = selector.model(torch.tensor([rollout.prompt_ids])).logits[0, -1]
    logp_s = logits[ids].log_softmax(0)
    best = logp_s.topk(m).indices
    targets = [answer_target(generator.writer, example, [int(i)], "first") for i in best]
    logp_g = target_log_likelihoods(generator.objective.likelihood, targets)
    (logp_s[best].log_softmax(0) + logp_g).logsumexp(0).backward()
    for learner in (selector, generator):
        exact = {n: -p.grad.clone() for n, p in learner.trainable.items()}
        learner.optimisation.zero_grad()
        learner.backward(
            [learner.objective.targets(WeightedRollout(rollout, c.selector, c.generator))]
        )
        error = sum((p.grad - exact[n]).square().sum() for n, p in learner.trainable.items())
        scale = sum(g.square().sum() for g in exact.values())
        assert scale > 1e-6
        assert math.sqrt(error / scale) < 1e-4


def test_training_ranks_documents_and_evaluation_selects_k_of_them(folder):
    recipe = make_recipe(folder, algorithm={"kind": "independent", "samples": 4})
    worker = RolloutWorker(recipe, "selector", recipe.selector.model)
    example = make_example()
    (training,) = worker.select([example], 4, 0)
    (greedy,) = worker.select([example], 1, 0, greedy=True)
    (sampled,) = worker.select([example], 3, 0, on_policy=True)
    ranked = [s.documents for s in training.selections]
    assert len(set(ranked)) == 4 and all(len(d) == 1 for d in ranked)
    assert greedy.selections[0].documents == (*ranked[0], *ranked[1])
    assert [len(s.documents) for s in sampled.selections] == [2, 2, 2]
    learner = Learner(recipe, "selector", recipe.selector.model, 10, 1e-3)
    (logps,) = learner.score([training])
    assert logps == pytest.approx([s.logp for s in training.selections], abs=1e-4)
    completions = [learner.objective.selection(training, s.token_ids) for s in training.selections]
    assert learner.objective.likelihood.of(completions).tolist() == pytest.approx(logps, abs=1e-5)


# --- the retriever ------------------------------------------------------------------------------

RETRIEVER = {
    "retrieval": {"kind": "bm25"},
    "rollout": {"decoding": "retriever"},
    "algorithm": {"train": ["generator"]},
}


def test_the_retrievers_best_k_are_selected_whatever_is_asked(folder):
    recipe = make_recipe(folder, **RETRIEVER)
    worker = RolloutWorker(recipe, "selector", recipe.selector.model)
    examples = [
        replace(make_example(0), scores=(0.1, 3.0, -2.0, 3.5, 0.0)),
        replace(make_example(1, 3), scores=(-5.0, -7.0, -6.0)),
    ]
    rollouts = worker.select(examples, 3, seed=1)
    (greedy, _) = worker.select(examples, 1, seed=2, greedy=True)
    assert [s.documents for s in rollouts[0].selections] == [(3, 1)] * 3
    assert [s.documents for s in rollouts[1].selections] == [(0, 2)] * 3
    (selection,) = greedy.selections
    assert selection == rollouts[0].selections[0]
    assert (selection.text, selection.logp, selection.malformed) == ("[4] > [2]", 0, False)
    assert (
        selection.token_ids == make_rollout(recipe, examples[0], [(3, 1)]).selections[0].token_ids
    )


def test_equal_scores_keep_the_order_of_the_documents(folder):
    recipe = make_recipe(folder, **RETRIEVER)
    worker = RolloutWorker(recipe, "selector", recipe.selector.model)
    (rollout,) = worker.select([replace(make_example(), scores=(1.0,) * 5)], 1, seed=0)
    assert rollout.selections[0].documents == (0, 1)


def test_an_evaluation_under_another_algorithms_decoding_is_not_the_runs_own(folder):
    settings = {"algorithm": {"kind": "independent", "samples": 4}}
    independent = make_recipe(folder, **settings)
    assert _results_matter(independent) != _results_matter(make_recipe(folder))
    reinforce = make_recipe(folder, algorithm={"kind": "reinforce"})
    assert _results_matter(reinforce) == _results_matter(make_recipe(folder))
