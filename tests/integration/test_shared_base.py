"""Two policies on one base: one vLLM engine that serves both adapters, and both kinds of process on
Ray. test_two_on_one_base.py has what learning makes of them."""

import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dro_rl.errors import UserError
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.records import WeightedRollout
from dro_rl.rollout.environment import engine_environment
from dro_rl.sections.process import RolloutSection
from tests.models import make_llama, make_word_tokenizer
from tests.tiny import WORDS, make_example, make_recipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TOLERANCE = 1e-4
EXAMPLES = [make_example(i) for i in range(4)]
PROBE = make_example(5)


def recipe_of(folder: Path, **sections) -> Recipe:
    if not (folder / "base").exists():
        tokenizer = make_word_tokenizer(WORDS, identifiers=8)
        make_llama(folder / "base", tokenizer=tokenizer, context=256)
    policy = {"model": str(folder / "base"), "learning_rate": 1e-2}
    return make_recipe(
        folder,
        selector={**policy, "lora": {"rank": 4}},
        generator={**policy, "lora": {"rank": 12}, "share_base_with": "selector"},
        **sections,
    )


def learn(teams, policies=POLICIES) -> None:
    rollouts = teams.select(EXAMPLES, 4, 0, nothing)
    batch = [WeightedRollout(r, (0.7, 0.1, 0.1, 0.1), (0.7, 0.1, 0.1, 0.1)) for r in rollouts]
    for wait in [teams.learners[p].submit("step", batch) for p in policies]:
        wait()


def nothing(done: int) -> None:
    pass


# --- vLLM ----------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What happened: gaps in nats, errors as their messages (empty: none)."""

    at_start: dict[str, float]
    after_a_step: dict[str, str]
    synchronised: list[dict[str, float]]
    sampled_gap: float  # of the selections that the engine then draws
    answers: list[list[str]]  # before and after a step of the selector alone
    prefix_cache_hits: float
    corrupted: dict[str, str]
    of_the_embedding: str


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Seen:
    pytest.importorskip("vllm", reason="vLLM does not support this machine")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(RolloutSection(), threads=1).items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, mp.get_context("spawn")) as pool:
            return pool.submit(observe, tmp_path_factory.mktemp("base")).result()


def observe(folder: Path) -> Seen:
    """In the spawned process: steps, syncs, and weights that went astray."""
    from dro_rl.cluster.processes import open_cluster
    from dro_rl.roles import start_teams
    from dro_rl.tracking.console import Console

    recipe = recipe_of(folder, rollout={"engine": "vllm", "max_sequences": 16})
    models: dict[PolicyName, str] = {p: recipe.policy(p).model for p in POLICIES}
    with open_cluster(recipe.cluster, 2) as cluster:
        teams = start_teams(recipe, cluster, models, Console(), 10)

        def complaint(policy: PolicyName) -> str:
            try:
                teams.check(policy, PROBE)
            except UserError as error:
                return str(error)
            return ""

        at_start = {p: teams.check(p, PROBE) for p in POLICIES}
        synchronised = [teams.synchronise(0, PROBE)]
        learn(teams)
        after_a_step = {p: complaint(p) for p in POLICIES}
        synchronised.append(teams.synchronise(1, PROBE))
        learn(teams)
        synchronised.append(teams.synchronise(2, PROBE))

        drawn = teams.select(EXAMPLES, 4, 1, nothing)
        sampled_gap = max(
            abs(logp - z.logp)
            for r, logps in zip(drawn, teams.selector_logps(drawn, nothing), strict=True)
            for z, logp in zip(r.selections, logps, strict=True)
        )
        chosen = [r.selections[0].documents for r in drawn]
        answers = [teams.answer(EXAMPLES, chosen, nothing)]
        learn(teams, ("selector",))
        synchronised.append(teams.synchronise(3, PROBE))
        answers.append(teams.answer(EXAMPLES, chosen, nothing))
        hits = teams.statistics("selector").prefix_cache_hits
        corrupted = {}
        for policy in POLICIES:
            right = teams.learners[policy].submit("weights")()[0]
            name = next(n for n in right if "0.self_attn.o_proj.weight" in n)
            wrong = {**right, name: right[name] * np.float32(1.5)}
            teams.engines[policy].submit("load_weights", wrong, 4)()
            corrupted[policy] = complaint(policy)
        synchronised.append(teams.synchronise(5, PROBE))
        thin = np.zeros((64, 4), np.float32)
        try:
            of_embedding = {f"model.embed_tokens.weight:{s}": t for s, t in _two(thin)}
            teams.engines["selector"].submit("load_weights", of_embedding, 6)()
            refused = ""
        except UserError as error:
            refused = str(error)
    return Seen(
        at_start,
        after_a_step,
        synchronised,
        sampled_gap,
        answers,
        hits,
        corrupted,
        refused,
    )


def _two(thin: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [("left", thin), ("right", thin.T)]


def test_an_engine_starts_as_the_base_that_the_learners_hold(seen):
    assert max(seen.at_start.values()) <= TOLERANCE


def test_a_step_without_a_sync_is_noticed(seen):
    for policy in POLICIES:
        assert f"the {policy}'s learner disagree on the weights" in seen.after_a_step[policy]


def test_every_sync_gives_each_policy_its_learners_adapter(seen):
    for gaps in seen.synchronised:
        assert gaps.keys() == set(POLICIES) and max(gaps.values()) <= TOLERANCE
    print("worst gap of a probe [nats]:", max(max(g.values()) for g in seen.synchronised))


def test_what_is_sampled_is_scored_alike_by_the_learner(seen):
    assert seen.sampled_gap <= TOLERANCE
    assert seen.prefix_cache_hits > 0.5


def test_a_new_adapter_of_one_policy_leaves_the_other_as_it_was(seen):
    before, after = seen.answers
    assert before == after


def test_a_corrupted_adapter_stops_the_run(seen):
    for policy in POLICIES:
        assert seen.corrupted[policy].startswith(f"the {policy} engine and the {policy}'s learner")


def test_layers_that_vllm_cannot_adapt_are_refused(seen):
    assert "selector.lora: vLLM cannot serve this adapter" in seen.of_the_embedding
    assert "target_modules" in seen.of_the_embedding


# --- Ray -----------------------------------------------------------------------------------------


def after_losses(teams) -> list[str]:
    """What is sampled by an engine that comes back, with both adapters, while the learners are
    lost too, and started again."""
    import ray

    from dro_rl.cluster.supervision import WorkerLost

    engine, learner = teams.engines["selector"].team, teams.learners["selector"].team
    lost = engine.members[0].actor
    ray.kill(lost)
    again = teams.select(EXAMPLES, 4, 1, nothing)
    assert engine.members[0].actor is not lost
    for policy in POLICIES:
        assert teams.check(policy, PROBE) <= TOLERANCE
    ray.kill(learner.members[0].actor)
    with pytest.raises(WorkerLost, match="learner of both policies.*lost in reward.score"):
        teams.reward.submit("score", again)()
    teams.restart_learners()
    assert max(teams.synchronise(0, PROBE).values()) <= TOLERANCE
    return [z.text for r in again for z in r.selections]


@pytest.mark.timeout(180)
def test_on_ray_two_processes_do_what_one_does(tmp_path):
    from dro_rl.cluster.processes import open_cluster
    from dro_rl.roles import start_teams
    from dro_rl.tracking.console import Console
    from dro_rl.usage import peak_memory

    outcomes = []
    for mode in ("local", "ray"):
        recipe = recipe_of(tmp_path, cluster={"mode": mode})
        models: dict[PolicyName, str] = {p: recipe.policy(p).model for p in POLICIES}
        with open_cluster(recipe.cluster, 2) as cluster:
            teams = start_teams(recipe, cluster, models, Console(), 10)
            teams.synchronise(0, PROBE)
            learn(teams)
            gaps = teams.synchronise(1, PROBE)
            assert max(gaps.values()) <= TOLERANCE
            rollouts = teams.select(EXAMPLES, 4, 1, nothing)
            scored = [s.log_rewards for s in teams.score(rollouts, None, nothing)]
            weights = {p: teams.learners[p].submit("weights")()[0] for p in POLICIES}
            outcomes.append((rollouts, scored, weights))
            told = {name for name in peak_memory(teams) if name.startswith("memory/")}
            roles = {"local": set(), "ray": {"memory/selector_engine", "memory/selector_learner"}}
            assert told == {"memory/trainer"} | roles[mode]
            if mode == "ray":
                again = after_losses(teams)
                assert again == [z.text for r in rollouts for z in r.selections]
    (rollouts, scored, weights), (others, others_scored, others_weights) = outcomes
    assert (rollouts, scored) == (others, others_scored)
    for policy in POLICIES:
        for name, array in weights[policy].items():
            assert np.array_equal(array, others_weights[policy][name])


# --- a run, in this process ----------------------------------------------------------------------

RUN = (
    "cluster.mode=local",
    "rollout.engine=transformers",
    "data.train_questions=32",
    "data.evaluation_questions=6",
    "training.questions_per_iteration=8",
    "training.batch_size=4",
    "training.schedule=constant",
    "algorithm.samples=4",
    "evaluation.samples=4",
    "selector.lora={rank: 4, dropout: 0.1}",
    "generator.lora.rank=8",
    "generator.share_base_with=selector",
    "generator.model=null",
)


def test_a_run_goes_on_exactly_where_it_stopped_and_its_policies_are_used(tmp_path, capsys):
    from dro_rl.inference import answer_question, evaluate_run
    from dro_rl.recipe_file import load_recipe
    from dro_rl.tracking.console import Console
    from dro_rl.tracking.run_directory import RunDirectory
    from dro_rl.trainer import train

    def recipe(name: str, iterations: int) -> Recipe:
        own = (f"training.iterations={iterations}", f"tracking.run_dir={tmp_path / name}")
        return load_recipe("demo.yaml", [*RUN, *own])

    straight = train(recipe("straight", 2), Console())
    train(recipe("stopped", 1), Console())
    stopped = train(recipe("stopped", 2), Console(), RunDirectory.open(tmp_path / "stopped"))
    for policy in POLICIES:
        ours, theirs = (
            (run.path / "checkpoints/iteration-0002" / policy / "model.safetensors").read_bytes()
            for run in (straight, stopped)
        )
        assert ours == theirs
    last, other = (run.evaluations()[-1] for run in (straight, stopped))
    assert {k: v for k, v in last.items() if k != "seconds"} == {
        k: v for k, v in other.items() if k != "seconds"
    }
    evaluate_run(straight.path, recipe("straight", 2), None, None, Console())
    again = straight.evaluations()[-1]
    for name in ("em", "f1", "bound", "malformed"):
        assert again[name] == pytest.approx(last[name], abs=1e-3)
    documents = tmp_path / "documents.jsonl"
    documents.write_text(
        "".join(f'{{"title": "Kovac", "text": "Born in {city}."}}\n' for city in ("Lyon", "Oslo"))
    )
    capsys.readouterr()
    question = "Name the Kovac hometown."
    answer_question(straight.path, question, documents, None, Console())
    assert "of 2 documents" in capsys.readouterr().out
