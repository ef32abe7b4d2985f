"""One real run of the demo, shortened: the command line, embedded Ray, vLLM engines.

Every test that changes the run's directory works on a copy of it.
"""

import json
import math
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

from dro_rl.recipe_file import load_recipe
from tests.commands import (
    ROOT,
    checkpoint,
    dro_rl,
    evaluation,
    files,
    iterations,
    metrics,
    rollouts,
    steps,
)

pytest.importorskip("vllm", reason="vLLM does not support this machine")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

POLICIES = ("selector", "generator")
WARM = {p: ROOT / "dro_rl" / "builtin" / f"facts-{p}" for p in POLICIES}
EVALUATION_KEYS = (
    "iteration questions em f1 recall@1 recall@3 recall@5 gold_recall bound bound_se "
    "effective_sample_size malformed selector_entropy seconds"
).split()
STAGES = "rollout learn synchronise evaluate checkpoint other".split()


# --- what is shown --------------------------------------------------------------------------------


def test_output_in_a_pipe_is_plain_text(result):
    assert result.out
    for code in ("\x1b", "\r"):
        assert code not in result.out + result.err


def test_every_stage_of_every_iteration_is_told_with_its_time(result):
    assert re.search(r"^evaluate warm start: .* in \d+\.\d s$", result.out, re.M)
    for i in (1, 2):
        for stage in ("rollout", "learn"):
            line = rf"^iteration {i}/2: {stage}: 64 questions in \d+\.\d s$"
            assert re.search(line, result.out, re.M), line
        assert re.search(rf"^iteration {i}: evaluate: .* in \d+\.\d s$", result.out, re.M)


def test_every_process_is_told_when_it_is_ready(result):
    roles = "selector learner|generator learner|reward service|selector engine|generator engine"
    told = re.findall(rf"^  ({roles}): ", result.out, re.M)
    assert sorted(told) == sorted(roles.split("|"))
    assert len(re.findall(r"engine vllm, version \d", result.out)) == 2


def test_the_table_shows_the_warm_start_and_each_iteration(result, run):
    rows = re.findall(r"^ *(warm start|1|2)((?: +-?\d+\.\d+){10}) *$", result.out, re.M)
    assert [name for name, _ in rows] == ["warm start", "1", "2"]
    for i, (_, cells) in enumerate(rows):
        figures = evaluation(run, i)
        expected = [figures["em"], figures["f1"], figures["recall@1"]]
        assert [float(c) for c in cells.split()[:3]] == pytest.approx(
            [100 * v for v in expected], abs=0.051
        )


def test_three_questions_are_shown_with_their_selection_before_and_after(result):
    shown = re.findall(
        r"^(.+\?|.+\.)  \(reference: .+\)\n  before .+ from .+\n  after  .+ from .+$",
        result.out,
        re.M,
    )
    assert len(set(shown)) == 3


def test_it_ends_with_the_run_directory(result, run):
    assert result.out.rstrip().endswith(f"run directory: {run}")


def test_it_leaves_a_report_that_the_command_makes_again(run, tmp_path):
    again = tmp_path / "again.html"
    dro_rl("report", run, "--output", again).succeeded()
    assert again.read_bytes() == (run / "report.html").read_bytes()
    dro_rl("report", tmp_path).refused(str(tmp_path), "not a run directory")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads other processes' environments")
def test_no_process_is_left(trained, result):
    assert [pid for pid in _marked(trained[2]) if pid != os.getpid()] == []


def _marked(mark: str) -> list[int]:
    """Processes that inherited the command's environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


# --- what is written ------------------------------------------------------------------------------


def test_the_run_holds_its_recipe_and_the_versions_that_ran_it(run):
    text = (run / "recipe.yaml").read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    for package in ("python", "dro-rl", "torch", "transformers", "vllm", "ray"):
        assert any(re.match(rf"# {package}(-cpu)? \d", line) for line in comments), package
    recipe = load_recipe(str(run / "recipe.yaml"))
    training = recipe.training
    assert (training.iterations, training.questions_per_iteration, training.batch_size) == (
        2,
        64,
        32,
    )
    assert recipe.tracking.run_dir == str(run)
    assert recipe == load_recipe(str(run / "recipe.yaml"), [f"training.seed={training.seed}"])


def test_metrics_have_a_row_a_step_and_a_row_an_iteration(run):
    assert [(r["iteration"], r["step"]) for r in steps(run)] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert [r["iteration"] for r in iterations(run)] == [1, 2]


def test_every_metric_is_a_finite_number_named_by_its_stage(run):
    for row in metrics(run):
        for key, value in row.items():
            assert isinstance(value, int | float) and math.isfinite(value), (key, value)
            stage = key.partition("/")[0]
            assert key in ("iteration", "step") or stage in (
                *("rollout", "reward", "selector", "generator", "evaluation"),
                *("time", "share", "tokens", "tokens_per_second", "mfu", "memory", "gpu_memory"),
            ), key
    for row in steps(run):
        assert {"selector/loss", "generator/loss", "rollout/effective_sample_size"} <= row.keys()


def test_every_stage_is_timed(run):
    for row in iterations(run):
        assert {k for k in row if k.startswith("time/")} == {f"time/{s}" for s in STAGES}
        assert all(row[f"time/{s}"] > 0 for s in STAGES)
        assert sum(row[f"share/{s}"] for s in STAGES) == pytest.approx(1)


def test_every_role_is_a_process_with_memory_of_its_own(run):
    roles = "trainer selector_engine generator_engine reward selector_learner generator_learner"
    for row in iterations(run):
        peaks = {k.removeprefix("memory/"): v for k, v in row.items() if k.startswith("memory/")}
        assert peaks.keys() == set(roles.split())
        assert all(0.01 < gib < 100 for gib in peaks.values())
        assert peaks["selector_engine"] != peaks["trainer"]


def test_engines_hold_the_learners_weights_after_every_sync(run):
    for row in iterations(run):
        for policy in POLICIES:
            assert 0 <= row[f"{policy}/engine_gap"] <= 1e-4


def test_rollouts_are_a_row_a_selection_and_weights_sum_to_one(run):
    uniform = load_recipe(str(run / "recipe.yaml")).algorithm.baseline == "uniform"
    for iteration in (1, 2):
        rows = rollouts(run, iteration)
        assert len(rows) == 64 * 8
        groups: dict[str, list[dict]] = {}
        for row in rows:
            groups.setdefault(row["example"], []).append(row)
        assert len(groups) == 64
        for group in groups.values():
            assert [row["sample"] for row in group] == list(range(8))
            assert sum(r["generator_weight"] for r in group) == pytest.approx(1)
            assert sum(r["selector_weight"] for r in group) == pytest.approx(0 if uniform else 1)
        assert {row["version"] for row in rows} == {iteration - 1}
        assert all(row["logq"] < 0 for row in rows)


@pytest.mark.parametrize("policy", POLICIES)
def test_checkpoints_load_with_transformers_and_have_learned(run, policy):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = [WARM[policy], *(checkpoint(run, i) / policy for i in (1, 2))]
    weights = [AutoModelForCausalLM.from_pretrained(f).state_dict() for f in folders]
    for before, after in pairwise(weights):
        assert before.keys() == after.keys()
        assert max((before[n] - after[n]).abs().max() for n in before) > 1e-5
    tokenizers = [AutoTokenizer.from_pretrained(f) for f in folders]
    assert len({tuple(t("[3] > [1]")["input_ids"]) for t in tokenizers}) == 1


def test_evaluations_have_the_keys_that_are_documented(run):
    names = sorted(p.name for p in (run / "evaluation").glob("*.json"))
    assert names == [f"iteration-000{i}.json" for i in range(3)]
    for i in range(3):
        figures = evaluation(run, i)
        assert sorted(figures) == sorted(EVALUATION_KEYS)
        assert figures["iteration"] == i and figures["questions"] == 40
        for key in "em f1 recall@1 recall@3 recall@5 gold_recall malformed".split():
            assert 0 <= figures[key] <= 1
        assert figures["recall@1"] <= figures["recall@3"] <= figures["recall@5"]
        assert figures["bound"] < 0 < figures["bound_se"]
        assert 1 <= figures["effective_sample_size"] <= 8
        assert figures["selector_entropy"] > 0 and figures["seconds"] > 0


def test_nothing_half_written_is_left(run):
    files = {"recipe.yaml", "metrics.jsonl", "report.html"}
    folders = {"rollouts", "checkpoints", "evaluation", "tensorboard"}
    assert {p.name for p in run.iterdir()} == files | folders
    assert {p.name for p in (run / "checkpoints").iterdir()} == {
        f"iteration-000{i}" for i in (1, 2)
    }
    assert {p.name for p in (run / "rollouts").iterdir()} == {
        f"iteration-000{i}{what}.parquet" for i in (1, 2) for what in ("", "-questions")
    }


# --- commands on the run --------------------------------------------------------------------------


def test_a_second_run_in_the_same_place_is_refused(trained, run):
    before = files(run)
    dro_rl(*trained[3]).refused(str(run), "--resume", "tracking.run_dir")
    assert files(run) == before


def test_resume_continues_at_the_next_iteration(copy):
    before = files(copy)
    result = dro_rl("train", "--resume", copy, "training.iterations=3", timeout=560).succeeded()
    assert "iteration 3/3: learn: 64 questions" in result.out and "iteration 2/3" not in result.out
    after = files(copy)
    assert after["metrics.jsonl"].startswith(before.pop("metrics.jsonl"))
    assert [r["iteration"] for r in iterations(copy)] == [1, 2, 3]
    assert [r["step"] for r in steps(copy)] == [1, 2, 3, 4, 5, 6]
    del before["recipe.yaml"], before["report.html"]
    assert load_recipe(str(copy / "recipe.yaml")).training.iterations == 3
    learners = [f"{p}.learner/rank-0000-of-0001.safetensors" for p in ("selector", "generator")]
    for state in (*learners, "known.json"):
        del before[f"checkpoints/iteration-0001/{state}"]  # those of the last two are kept
        assert f"checkpoints/iteration-0001/{state}" not in after
    before = {k: v for k, v in before.items() if not k.startswith("tensorboard/")}  # written anew
    assert {name: after[name] for name in before} == before
    assert (checkpoint(copy, 3) / "selector" / "model.safetensors").is_file()
    assert evaluation(copy, 3)["iteration"] == 3
    assert len(rollouts(copy, 3)) == 64 * 8


def test_evaluate_reproduces_the_last_evaluation(copy):
    """In one process, without Ray. Every figure but the seconds is equal, sampled ones too: the
    seed decides the samples, and the checkpoint holds the engines' float32 weights."""
    before = evaluation(copy, 2)
    (copy / "evaluation" / "iteration-0002.json").unlink()
    result = dro_rl("evaluate", copy, "cluster.mode=local", timeout=560).succeeded()
    again = evaluation(copy, 2)
    assert again | {"seconds": 0} == before | {"seconds": 0}
    assert f"{100 * before['em']:.1f}" in result.out


def test_answer_shows_what_the_evaluation_found(run):
    row = json.loads((run / "evaluation" / "iteration-0002.jsonl").read_text().splitlines()[0])
    result = dro_rl("answer", run, row["question"]).succeeded()
    answer, _, heading, *documents = result.out.rstrip().splitlines()
    assert answer == row["answer"]
    assert re.fullmatch(r"selected '.*' of 8 documents:", heading)
    shown = [re.sub(r"^  \[\d\] ", "", line) for line in documents]
    assert shown == [f"{d['title']}: {d['text']}" for d in row["selected"]]


def test_answer_takes_documents_from_a_file(run, tmp_path):
    rows = [json.loads(x) for x in (run / "evaluation" / "iteration-0002.jsonl").open()][:4]
    documents = [d for row in rows for d in row["selected"]]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(d) + "\n" for d in documents))
    before = files(run)
    result = dro_rl("answer", run, rows[0]["question"], "--documents", path).succeeded()
    given = {f"{d['title']}: {d['text']}" for d in documents}
    assert f" of {len(given)} documents:" in result.out
    shown = re.findall(r"^  \[\d\] (.+)$", result.out, re.M)
    assert shown and set(shown) <= given
    assert files(run) == before


def test_a_question_without_documents_is_refused(run):
    dro_rl("answer", run, "Who painted the ceiling?").refused("--documents")
