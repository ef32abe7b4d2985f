"""Whole runs of an encoder without a generator, in this process: the same trainer, algorithms,
evaluation, checkpoints and report as of two causal LMs."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from rich.console import Console as RichConsole

from dro_rl.chat.service import serve_run
from dro_rl.comparison.runs import Run, read_result
from dro_rl.comparison.tables import headline, paired_table
from dro_rl.errors import UserError
from dro_rl.evaluation import log_mean_exp
from dro_rl.export import export_run
from dro_rl.inference import evaluate_run
from dro_rl.pipeline import load_pipeline
from dro_rl.recipe import Recipe
from dro_rl.recipe_file import load_recipe
from dro_rl.tracking.console import Console
from dro_rl.tracking.report import write_report
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.watch_screen import watch
from dro_rl.trainer import train
from dro_rl.warmup import warm_up
from tests.commands import evaluation, iterations, steps
from tests.encoders import make_bi_encoder, make_encoder_recipe
from tests.outcomes import differences
from tests.tiny import make_example

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An encoder, and 24 questions to train and 6 to evaluate on."""
    folder = tmp_path_factory.mktemp("encoder")
    make_bi_encoder(folder / "model")
    lines = []
    for number in range(30):
        example = make_example(number)
        documents = [
            {"title": d.title, "text": d.text, "is_gold": d.is_gold} for d in example.candidates
        ]
        row = {
            "id": f"q{number}",
            "question": f"{example.question} {number}",
            "answers": [example.answers[0]],
            "documents": documents,
        }
        lines.append(json.dumps(row))
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder


def recipe(folder: Path, run: Path, **sections) -> Recipe:
    data = {"path": str(folder / "data.jsonl"), "evaluation_questions": 6}
    training = {
        "iterations": 2,
        "questions_per_iteration": 16,
        "batch_size": 8,
        **sections.pop("training", {}),
    }
    return make_encoder_recipe(
        folder / "model",
        data=data,
        training=training,
        evaluation={"samples": 4, **sections.pop("evaluation", {})},
        tracking={"run_dir": str(run)},
        **sections,
    )


def quiet() -> tuple[Console, io.StringIO]:
    said = io.StringIO()
    return Console(RichConsole(file=said, width=200)), said


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    """Four iterations of DRO on the oracle's reward."""
    place = tmp_path_factory.mktemp("dro") / "run"
    settings = {"training": {"iterations": 4, "questions_per_iteration": "all"}}
    algorithm = {"samples": 8, "baseline": "uniform"}
    train(recipe(folder, place, algorithm=algorithm, **settings), quiet()[0])
    return place


def test_dro_learns_to_pick_what_is_rewarded(run):
    first, last = evaluation(run, 0), evaluation(run, 4)
    assert last["reward"] > first["reward"] + 0.1
    assert last["gold_recall"] >= first["gold_recall"]
    assert 0 < last["selector_entropy"] < first["selector_entropy"]
    for summary in (first, last):
        assert summary["malformed"] == 0
        assert {summary[k] for k in ("em", "f1", "bound", "effective_sample_size")} == {None}
    for row in iterations(run):
        assert row["selector/engine_gap"] <= 1e-4
        assert row["tokens/rollout"] > 0 and row["tokens/learn"] > 0
    assert steps(run)[0]["selector/logp_gap"] < 1e-3


def test_its_report_and_comparison_live_without_answers(run, tmp_path):
    write_report([RunDirectory.open(run)], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    told = json.loads(re.search(r'id="data"[^>]*>(.*?)</script>', page, re.S)[1])
    keys = [row["key"] for row in told["runs"][0]["headline"]]
    assert keys == ["recall@1", "recall@3", "recall@5", "gold_recall", "reward"]
    result = read_result(Run("dro", 0, load_recipe(str(run / "recipe.yaml")), run))
    assert [m.key for m in headline([result])] == ["gold_recall", "reward"]
    assert len(result.scores("reward")) == 6 and result.scores("em") == {}


def test_watching_it_shows_documents_without_answers(run):
    console, said = quiet()
    watch(run, console)
    told = said.getvalue()
    assert "finished after iteration 4" in told
    (now,) = re.findall(r"^  now +(.*)$", told, re.M)
    assert "*" in now and " from " not in now and "None" not in now


def test_it_answers_with_documents_alone(run):
    with load_pipeline(run) as pipeline:
        found = pipeline.answer("Name the Kovac hometown. 0")
    assert found.text is None and len(found.documents) == 2


def test_its_export_is_what_sentence_transformers_reads(run, tmp_path):
    from sentence_transformers import SentenceTransformer

    out = export_run(run, tmp_path / "out", "best")
    assert {path.name for path in out.iterdir()} == {"manifest.json", "selector"}
    example = make_example(0)
    question = f"{example.question} 0"
    texts = [f"{d.title} {d.text}".strip() for d in example.candidates]
    model = SentenceTransformer(str(out / "selector"), device="cpu", local_files_only=True)
    scores = model.similarity(model.encode([question]), model.encode(texts))[0]
    with load_pipeline(run) as pipeline:
        picked = pipeline.answer(question, example.candidates)
    best = [example.candidates[i] for i in scores.topk(2).indices.tolist()]
    assert list(picked.documents) == best
    card = ModelCard.load(out / "selector" / "README.md")
    assert card.data.library_name == "sentence-transformers"
    assert "generator" not in card.text.split("## Made from")[0]


def test_without_a_generator_nothing_is_served(run):
    with pytest.raises(UserError, match="no generator .*dro-rl export"):
        serve_run(run, load_recipe(str(run / "recipe.yaml")), None, "127.0.0.1", 1, 1, quiet()[0])


def test_an_evaluation_is_repeatable(run):
    before = evaluation(run, 4)
    console, said = quiet()
    evaluate_run(run, load_recipe(str(run / "recipe.yaml")), None, 4, console)
    after = evaluation(run, 4)
    assert "written" in said.getvalue()
    assert {k: v for k, v in after.items() if k != "seconds"} == {
        k: v for k, v in before.items() if k != "seconds"
    }


@pytest.mark.parametrize(
    "selector",
    [
        {},
        {"train": "head"},
        {"train": "last_layers", "layers": 1},
        {"lora": {"rank": 2}},
    ],
    ids=["all", "head", "last layer", "lora"],
)
def test_a_resumed_run_ends_as_an_undisturbed_one(folder, tmp_path, selector):
    whole, halves = tmp_path / "whole" / "run", tmp_path / "halves" / "run"
    train(recipe(folder, whole, selector=selector), quiet()[0])
    train(recipe(folder, halves, selector=selector, training={"iterations": 1}), quiet()[0])
    on = recipe(folder, halves, selector=selector)
    train(on, quiet()[0], RunDirectory.open(halves))
    assert differences(whole, halves) == []


def test_it_does_so_from_an_iteration_that_is_not_evaluated(folder, tmp_path):
    """Its tokens too: those of the probe are no work of the next iteration's."""
    whole, halves = tmp_path / "whole" / "run", tmp_path / "halves" / "run"
    train(recipe(folder, whole, evaluation={"every": 2}), quiet()[0])
    shutil.copytree(whole, halves)
    shutil.rmtree(halves / "checkpoints" / "iteration-0002")
    on = recipe(folder, halves, evaluation={"every": 2})
    train(on, quiet()[0], RunDirectory.open(halves))
    assert differences(whole, halves) == []


@pytest.mark.parametrize(
    "algorithm",
    [
        {"kind": "maxrl"},
        {"kind": "grpo", "kl": 0.1},
        {"kind": "rloo"},
        {"kind": "reinforce"},
        {"kind": "dro", "off": True},
    ],
    ids=lambda a: a["kind"] + ("-temperature" if "off" in a else ""),
)
def test_other_algorithms_go_the_same_way(folder, tmp_path, algorithm):
    settings = {"selector": {"conditional": True}}
    if algorithm.pop("off", False):
        settings["rollout"] = {"temperature": 1.5, "overlap": 1}
    algorithm = {"samples": 4, "train": ["selector"], **algorithm}
    plain = recipe(folder, tmp_path / "run", **settings).resolved()
    train(Recipe.model_validate({**plain, "algorithm": algorithm}), quiet()[0])
    assert all(row["selector/grad_norm"] > 0 for row in steps(tmp_path / "run"))
    assert evaluation(tmp_path / "run", 2)["reward"] is not None


def test_two_engines_share_the_questions(folder, tmp_path):
    train(recipe(folder, tmp_path / "run", rollout={"workers": 2}), quiet()[0])
    assert evaluation(tmp_path / "run", 2)["reward"] is not None


def test_a_run_stops_when_the_reward_no_longer_rises(folder, tmp_path):
    settings = {"early_stop": {"metric": "reward", "patience": 1}, "iterations": 4}
    console, said = quiet()
    slow = {"learning_rate": 1e-12}
    train(recipe(folder, tmp_path / "run", training=settings, selector=slow), console)
    assert "stopped early: no better reward since iteration" in said.getvalue()


def test_a_log_reward_is_evaluated_in_nats(folder, tmp_path):
    """The mean over questions of log-mean-exp: what the loop maximises."""
    (tmp_path / "reward.py").write_text(
        "from dro_rl.reward import Reward\n"
        "class Likelihood(Reward):\n"
        "    scale = 'log'\n"
        "    def score(self, outcomes):\n"
        "        return [-900.0 - 3 * min(o.documents) for o in outcomes]\n"
    )
    settings = {"training": {"iterations": 1}, "reward": str(tmp_path / "reward.py")}
    train(recipe(folder, tmp_path / "run", **settings), quiet()[0])
    rows = list(RunDirectory.open(tmp_path / "run").evaluated_questions(1))
    for row in rows:
        logs = [s["log_reward"] for s in row["samples"]]
        assert row["reward"] == pytest.approx(log_mean_exp(logs)) and row["reward"] < -899
    wanted = sum(row["reward"] for row in rows) / len(rows)
    assert evaluation(tmp_path / "run", 1)["reward"] == pytest.approx(wanted)


@pytest.mark.parametrize("negatives", ["candidates", "batch"])
def test_warm_up_learns_the_gold_documents(folder, tmp_path, negatives):
    settings = {"steps": 30, "batch_size": 8, "learning_rate": 1e-2, "negatives": negatives}
    console, said = quiet()
    plain = recipe(folder, tmp_path / "run", warmup=settings)
    made = warm_up(plain, tmp_path / "made", console)
    assert list(made) == ["selector"]
    first, last = said.getvalue().rpartition("loss ")[2].split(" nats")[0].split(" to ")
    assert float(last) < float(first)
    trained = recipe(folder, tmp_path / "run", selector={"model": str(made["selector"])})
    train(trained.model_copy(update={"warmup": plain.warmup}), quiet()[0])
    assert evaluation(tmp_path / "run", 0)["gold_recall"] > 0.7


def test_a_reward_that_needs_a_generator_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="generator: none, and rewards/f1.py needs a generator's"):
        train(recipe(folder, tmp_path / "run", reward="rewards/f1.py"), quiet()[0])
    assert not (tmp_path / "run").exists()


def test_a_figure_that_questions_do_not_have_is_left_out_of_a_comparison(run):
    """Unlabelled questions have no gold recall, and there is no difference to tell."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    results = [read_result(Run(arm, 0, recipe, run)) for arm in ("dro", "maxrl")]
    bare = [
        replace(r, questions={k: {**q, "gold_recall": None} for k, q in r.questions.items()})
        for r in results
    ]
    arms = [SimpleNamespace(name=r.arm) for r in results]
    comparison: Any = SimpleNamespace(arms=arms, seeds=[0])
    (row,) = paired_table(comparison, bare).rows
    assert row[:3] == ("maxrl - dro", "1", "-") and row[3].startswith("+0.0")
