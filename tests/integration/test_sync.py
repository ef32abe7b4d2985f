"""New weights on their way from learners to vLLM engines and the reward service.

All of them live in one spawned process, since an engine changes its host; it goes through the
scenario once for full weights and once for LoRA, and the tests look at what it saw.
"""

import multiprocessing as mp
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dro_rl.errors import UserError
from dro_rl.recipe import POLICIES, PolicyName
from dro_rl.records import WeightedRollout
from dro_rl.rollout.environment import engine_environment
from dro_rl.sections.process import RolloutSection
from tests.models import make_llama, make_word_tokenizer
from tests.tiny import WORDS, make_example, make_recipe

pytest.importorskip("vllm", reason="vLLM does not support this machine")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TOLERANCE = 1e-4
LORA = {"full": {}, "lora": {"lora": {"rank": 4}}}


@dataclass
class Seen:
    """What happened: gaps in nats, errors as their messages (empty: none)."""

    at_start: dict[str, float]
    after_a_step: dict[str, str]
    synchronised: dict[str, float]
    sampled_gap: float  # of the selections that the engine then draws
    version: int
    corrupted_engine: dict[str, str]
    corrupted_reward: str
    mended: dict[str, float]


@pytest.fixture(scope="module", params=["full", "lora"])
def seen(request, tmp_path_factory) -> Seen:
    folder = tmp_path_factory.mktemp(request.param)
    context = mp.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(RolloutSection(), threads=1).items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(observe, folder, request.param).result()


def observe(folder: Path, kind: str) -> Seen:
    """In the spawned process: a step of both learners, a sync, and weights that went astray."""
    from dro_rl.cluster.processes import open_cluster
    from dro_rl.roles import start_teams
    from dro_rl.tracking.console import Console

    for seed, policy in enumerate(POLICIES):
        tokenizer = make_word_tokenizer(WORDS, identifiers=8)
        make_llama(folder / policy, tokenizer=tokenizer, seed=seed, context=256)
    section = {"learning_rate": 1e-2, **LORA[kind]}
    recipe = make_recipe(
        folder, selector=section, generator=section, rollout={"engine": "vllm", "max_sequences": 16}
    )
    examples = [make_example(i) for i in range(4)]
    probe = make_example(5)
    models: dict[PolicyName, str] = {p: recipe.policy(p).model for p in POLICIES}
    with open_cluster(recipe.cluster, 5) as cluster:
        teams = start_teams(recipe, cluster, models, Console(), 10)

        def complaint(policy: PolicyName) -> str:
            try:
                teams.check(policy, probe)
            except UserError as error:
                return str(error)
            return ""

        at_start = {p: teams.check(p, probe) for p in POLICIES}
        rollouts = teams.select(examples, 4, 0, lambda n: None)
        batch = [WeightedRollout(r, (0.7, 0.1, 0.1, 0.1), (0.7, 0.1, 0.1, 0.1)) for r in rollouts]
        for learner in teams.learners.values():
            learner.submit("step", batch)()
        after_a_step = {p: complaint(p) for p in POLICIES}
        synchronised = teams.synchronise(1, probe)

        drawn = teams.select(examples, 4, 1, lambda n: None)
        sampled_gap = max(
            abs(logp - z.logp)
            for r, logps in zip(drawn, teams.selector_logps(drawn, lambda n: None), strict=True)
            for z, logp in zip(r.selections, logps, strict=True)
        )
        corrupted_engine = {}
        for policy in POLICIES:
            wrong = _corrupted(teams.learners[policy].submit("weights")()[0])
            teams.engines[policy].submit("load_weights", wrong, 2)()
            corrupted_engine[policy] = complaint(policy)
        teams.synchronise(3, probe)
        teams.reward.submit("load_weights", wrong, 4)()
        corrupted_reward = complaint("generator")
        mended = teams.synchronise(5, probe)
    return Seen(
        at_start,
        after_a_step,
        synchronised,
        sampled_gap,
        drawn[0].version,
        corrupted_engine,
        corrupted_reward,
        mended,
    )


def _corrupted(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One matrix of many, wrong; of adapters, a factor of it."""
    name = next(n for n in weights if "0.self_attn.o_proj.weight" in n)
    return {**weights, name: weights[name] * np.float32(1.5)}


def test_engines_and_learners_start_with_the_same_weights(seen):
    assert max(seen.at_start.values()) <= TOLERANCE


def test_a_step_without_a_sync_is_noticed(seen):
    for policy in POLICIES:
        assert f"the {policy}'s learner disagree on the weights" in seen.after_a_step[policy]


def test_a_sync_gives_everyone_the_learners_weights(seen):
    assert seen.synchronised.keys() == set(POLICIES)
    assert max(seen.synchronised.values()) <= TOLERANCE


def test_what_is_sampled_after_a_sync_is_scored_alike_by_the_learner(seen):
    assert seen.sampled_gap <= TOLERANCE
    assert seen.version == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_corrupted_weights_of_an_engine_stop_the_run_and_both_figures_are_named(seen, policy):
    assert_names_both(seen.corrupted_engine[policy], f"the {policy} engine")


def test_corrupted_weights_of_the_reward_service_stop_the_run(seen):
    assert_names_both(seen.corrupted_reward, "the reward service")


def assert_names_both(message: str, who: str) -> None:
    assert message.startswith(who)
    found = re.search(r"(-?\d+\.\d+) against (-?\d+\.\d+) nats", message)
    assert found and found[1] != found[2]
    assert "rollout.max_logp_gap" in message


def test_the_next_sync_mends_it(seen):
    assert max(seen.mended.values()) <= TOLERANCE
