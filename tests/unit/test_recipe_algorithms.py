"""The sections of algorithms, and what each asks of the rest of a recipe."""

import pytest

from dro_rl.recipe_file import load_recipe
from dro_rl.sections.retrieval import Bm25Retrieval
from tests.written_recipes import VALID, problem, writer

pytestmark = pytest.mark.unit


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


KINDS = ("dro", "maxrl", "grpo", "rloo", "reinforce", "ppo", "independent")


@pytest.mark.parametrize("kind", KINDS)
def test_every_algorithm_needs_its_kind_alone(write, kind):
    recipe = load_recipe(write(), [f"algorithm={{kind: {kind}}}"])
    assert recipe.algorithm.kind == kind
    assert recipe.algorithm.samples == 8
    assert recipe.algorithm.train == ["selector", "generator"]
    assert recipe.decoding == ("independent" if kind == "independent" else "free")


def test_an_algorithm_without_a_kind_is_dro(write):
    assert load_recipe(write(), ["algorithm={baseline: uniform}"]).algorithm.kind == "dro"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("{kind: dr_grpo}", "algorithm.kind: must be one of 'dro', 'maxrl', 'grpo', 'rloo'"),
        ("{kind: maxrl, tau: 2}", "algorithm.tau: belongs to kind: dro"),
        ("{kind: grpo, scael: none}", "algorithm.scael: unknown key; did you mean scale?"),
        ("{kind: grpo, scale: mean}", "algorithm.scale: Input should be 'std' or 'none'"),
        ("{kind: grpo, clip: 1}", "algorithm.clip: Input should be less than 1"),
        ("{kind: grpo, kl: -1}", "algorithm.kl: Input should be greater than or equal to 0"),
        (
            "{kind: independent, kl: 0.1}",
            "algorithm.kl: belongs to kind: dro or maxrl or grpo",
        ),
        ("{kind: rloo, cip: 0.1}", "algorithm.cip: unknown key; did you mean clip?"),
        ("{kind: reinforce, clip: 0.1}", "algorithm.clip: belongs to kind: grpo"),
        ("{kind: reinforce, dcay: 0.1}", "algorithm.dcay: unknown key; did you mean decay?"),
        ("{kind: reinforce, decay: 1.5}", "algorithm.decay: Input should be less than or equal to"),
        ("{kind: ppo, gae: 1}", "algorithm.gae: unknown key"),
        ("{kind: ppo, gae_lamda: 1}", "algorithm.gae_lamda: unknown key; did you mean gae_lambda?"),
        ("{kind: ppo, normalise: 3}", "algorithm.normalise: Input should be a valid boolean"),
        ("{kind: independent, tau: 2}", "algorithm.tau: belongs to kind: dro"),
        ("{kind: dro, maximise: log_reward}", "algorithm.maximise: belongs to kind: grpo or rloo"),
        ("{kind: dro, clip: 0.2}", "algorithm.clip: belongs to kind: grpo or rloo or ppo"),
        (
            "{kind: dro, min_effective_sample_size: 0.5}",
            "algorithm.min_effective_sample_size: Input should be greater than or equal to 1",
        ),
        (
            "{kind: dro, samples: 4, min_effective_sample_size: 5}",
            "min_effective_sample_size (5.0) exceeds samples (4), which is the most it can be",
        ),
    ],
)
def test_an_option_that_an_algorithm_does_not_have_is_told(write, settings, told):
    assert told in problem(write(), f"algorithm={settings}")


@pytest.mark.parametrize("kind", ["maxrl", "grpo", "rloo", "independent", "trl_grpo"])
def test_a_baseline_of_the_others_needs_others(write, kind):
    train = "train: [selector]"
    told = problem(write(), f"algorithm={{kind: {kind}, samples: 1, {train}}}")
    assert f"algorithm: kind: {kind} compares the selections of a question with each other" in told
    assert "Set samples to 2 or more" in told
    load_recipe(write(), [f"algorithm={{kind: {kind}, samples: 2, {train}}}"])


@pytest.mark.parametrize("kind", ["maxrl", "grpo", "rloo"])
def test_a_generator_alone_learns_from_one_selection(write, kind):
    load_recipe(write(), [f"algorithm={{kind: {kind}, samples: 1, train: [generator]}}"])


@pytest.mark.parametrize("kind", ["dro", "reinforce", "ppo"])
def test_algorithms_without_a_group_take_one_sample(write, kind):
    load_recipe(write(), [f"algorithm={{kind: {kind}, samples: 1}}"])


@pytest.mark.parametrize("kind", KINDS)
def test_another_sampling_distribution_is_for_algorithms_that_correct_it(write, kind):
    for sampling in ("temperature: 0.7", "top_p: 0.9, allow_biased_sampling: true"):
        overrides = [f"algorithm={{kind: {kind}}}", f"rollout={{{sampling}}}"]
        if kind in ("dro", "maxrl", "reinforce"):
            load_recipe(write(), overrides)
        else:
            told = problem(write(), *overrides)
            assert f"algorithm.kind: {kind} compares the selector with the one that sampled" in told
            assert "leave rollout.temperature at 1" in told


def test_what_is_sampled_ahead_must_be_allowed_to_be_stale(write):
    assert "leave max_staleness at 1" in problem(
        write(), "rollout.overlap=1", "rollout.max_staleness=0"
    )
    load_recipe(write(), ["rollout.overlap=1", "rollout.max_staleness=1"])
    load_recipe(write(), ["rollout.max_staleness=0"])


@pytest.mark.parametrize("decoding", ["distinct", "retriever"])
def test_independent_leaves_decoding_no_say(write, decoding):
    told = problem(
        write(),
        "algorithm={kind: independent, train: [generator]}",
        f"rollout.decoding={decoding}",
    )
    assert "algorithm.kind: independent scores each document alone" in told


def test_independent_scores_each_candidate_once(write):
    kind = "algorithm={kind: independent, samples: 11}"
    assert "algorithm.samples (11) exceeds retrieval.candidates (10)" in problem(write(), kind)
    load_recipe(write(), [kind, "retrieval.candidates=11"])


def test_the_retriever_leaves_the_selector_nothing_to_learn(write):
    retriever = "rollout.decoding=retriever"
    told = problem(write(), retriever)
    assert "rollout.decoding: retriever selects without the selector" in told
    assert "set algorithm.train: [generator]" in told
    load_recipe(write(), [retriever, "algorithm.train=[generator]"])


def test_trls_trainer_is_of_the_selector_alone(write):
    told = problem(write(), "algorithm={kind: trl_grpo, train: [selector, generator]}")
    assert "kind: trl_grpo trains the selector alone: train: [selector]" in told
    assert load_recipe(write(), ["algorithm={kind: trl_grpo}"]).algorithm.train == ["selector"]


def test_trls_trainer_samples_freely(write):
    told = problem(write(), "algorithm.kind=trl_grpo", "rollout.decoding=distinct")
    assert "rollout.decoding must be free, not distinct" in told


@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_a_ratio_to_the_policy_that_sampled_allows_no_dropout(write, kind):
    lora = "selector.lora={rank: 4, dropout: 0.1}"
    told = problem(write(), f"algorithm={{kind: {kind}}}", lora)
    assert "set selector.lora.dropout to 0" in told
    load_recipe(write(), [f"algorithm={{kind: {kind}, train: [generator]}}", "selector.lora=null"])
    load_recipe(write(), [lora])


def test_an_algorithm_given_by_its_name_alone_is_told_how(write):
    assert "write algorithm.kind=grpo" in problem(write(), "algorithm=grpo")


def test_a_comparison_is_not_a_recipe(write):
    text = "base: demo.yaml\nseeds: [0]\noutput: out\narms: {dro: {}}\n"
    assert "is a comparison, not a recipe: dro-rl compare" in problem(write(text))


def test_an_algorithm_of_another_kind_keeps_samples_and_train_alone(write):
    """Of the recipe that it extends: what means the same in every kind."""
    settings = "algorithm: {kind: dro, samples: 4, train: [selector], tau: per_token}\n"
    write(VALID + settings, "base.yaml")
    over = write("extends: base.yaml\nalgorithm: {kind: grpo, kl: 0.1}\n", "over.yaml")
    algorithm = load_recipe(over).algorithm
    assert (algorithm.kind, algorithm.samples, algorithm.train) == ("grpo", 4, ["selector"])
    assert algorithm.kl == 0.1
    own = write("extends: base.yaml\nalgorithm: {kind: grpo, samples: 3}\n", "own.yaml")
    assert load_recipe(own).algorithm.samples == 3
    same = write("extends: base.yaml\nalgorithm: {kind: dro, baseline: uniform}\n", "same.yaml")
    assert load_recipe(same).algorithm.tau == "per_token"


def test_another_kind_replaces_the_options_of_a_dro_that_was_not_named(write):
    """`algorithm: {tau: 2}` is DRO's, though it does not say so."""
    write(VALID + "algorithm: {samples: 4, tau: 2}\n", "base.yaml")
    over = write("extends: base.yaml\nalgorithm: {kind: rloo}\n", "over.yaml")
    algorithm = load_recipe(over).algorithm
    assert (algorithm.kind, algorithm.samples) == ("rloo", 4)


def test_a_section_of_another_kind_replaces_the_bases(write):
    """Elsewhere nothing means the same in every kind."""
    write(VALID, "base.yaml")
    over = write(
        "extends: base.yaml\ndata: {kind: hotpotqa, path: x.json}\n"
        "retrieval: {kind: bm25, candidates: 7}\n",
        "over.yaml",
    )
    recipe = load_recipe(over)
    assert recipe.data.kind == "hotpotqa" and recipe.data.evaluation_questions is None
    assert recipe.retrieval == Bm25Retrieval(kind="bm25", candidates=7)
