"""An encoder's weights: what engines take over and what is saved; and what texts cost it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dro_rl.cluster.processes import open_cluster
from dro_rl.encoder_learner import EncoderLearner
from dro_rl.errors import UserError
from dro_rl.policy.picks import Picks, State
from dro_rl.policy.targets import Target
from dro_rl.policy.texts import document_text
from dro_rl.records import Document
from dro_rl.roles import start_teams
from dro_rl.tracking.console import Console
from tests.encoder_policies import (
    EXAMPLE,
    KINDS,
    ORDERS,
    make_models,
    make_policy,
    rollout_of,
)
from tests.encoders import make_encoder_recipe
from tests.tiny import make_example

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("encoders"))


@pytest.mark.parametrize("kind", ["bi", "head", "cross", "cross, lora"])
def test_engines_take_what_a_step_has_learned(kind, models):
    policy = make_policy(kind, models)
    learner, worker = policy.learner, policy.worker
    picks, before = learner.probe(EXAMPLE)
    assert worker.probe(*picks.asked) == pytest.approx(before, abs=1e-4)
    learner.step_on([[Target((picks,))]])
    _, after = learner.probe(EXAMPLE)
    assert abs(sum(after) - sum(before)) > 1e-3
    assert worker.probe(*picks.asked) == pytest.approx(before, abs=1e-4)
    worker.load_weights(learner.weights(), 1)
    assert worker.probe(*picks.asked) == pytest.approx(after, abs=1e-4)
    assert worker.select([EXAMPLE], 1, 0)[0].version == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_missed_sync_is_noticed(dtype, models):
    """In bfloat16 too: engine and learner are the same code."""
    recipe = make_encoder_recipe(models["bi"], {"dtype": dtype})
    with open_cluster(recipe.cluster, 3) as cluster:
        model = recipe.selector.model
        teams = start_teams(
            recipe, cluster, {"selector": model, "generator": "none"}, Console(), 10
        )
        assert teams.check("selector", EXAMPLE) < 1e-4
        learner = teams.learners["selector"]
        ((picks, _),) = learner.submit("probe", EXAMPLE)()
        learner.submit("step_on", [[Target((picks,))]])()
        with pytest.raises(UserError, match="disagree on the weights"):
            teams.check("selector", EXAMPLE)
        assert teams.synchronise(1, EXAMPLE)["selector"] < 1e-4


def test_a_head_alone_learns_and_begins_as_nothing(models):
    policy, plain = make_policy("head", models), make_policy("bi", models)
    assert policy.probabilities == pytest.approx(plain.probabilities, rel=1e-4)
    assert set(policy.learner.trainable) == {"plain.3.linear.weight"}
    body = {n: p.clone() for n, p in policy.learner.model.named_parameters() if "linear" not in n}
    policy.learner.step_on([[Target((Picks(EXAMPLE, (4, 3)),))]])
    now = dict(policy.learner.model.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in body.items())


@pytest.mark.parametrize("kind", ["bi", "head", "bi, lora"])
def test_a_saved_bi_encoder_is_a_plain_one(kind, models, tmp_path):
    """What is saved ranks by itself as the policy does, and is what training goes on from."""
    from sentence_transformers import SentenceTransformer

    policy = make_policy(kind, models)
    policy.learner.step_on([[Target((Picks(EXAMPLE, (4, 3)),))]])
    policy.learner.save_policy(tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    asked = plain.encode_query([EXAMPLE.question])
    shown = plain.encode_document([document_text(d) for d in EXAMPLE.candidates])
    with torch.no_grad():
        scores = policy.learner.model.scores([State(EXAMPLE)])[0] / policy.recipe.selector.scale
    assert plain.similarity(asked, shown)[0].tolist() == pytest.approx(scores.tolist(), abs=1e-4)
    again = EncoderLearner(policy.recipe, "selector", str(tmp_path / "saved"), 10, 1e-2)
    assert again.score([rollout_of(ORDERS)])[0] == pytest.approx(
        policy.learner.score([rollout_of(ORDERS)])[0], abs=1e-4
    )
    assert again.trainable.keys() == policy.learner.trainable.keys()


@pytest.mark.parametrize("kind", ["cross", "cross, lora"])
def test_a_saved_cross_encoder_is_a_plain_one(kind, models, tmp_path):
    from sentence_transformers import CrossEncoder

    policy = make_policy(kind, models)
    policy.learner.step_on([[Target((Picks(EXAMPLE, (4, 3)),))]])
    policy.learner.save_policy(tmp_path / "saved")
    plain = CrossEncoder(str(tmp_path / "saved"), device="cpu", activation_fn=torch.nn.Identity())
    pairs = [(EXAMPLE.question, document_text(d)) for d in EXAMPLE.candidates]
    with torch.no_grad():
        scores = policy.learner.model.scores([State(EXAMPLE)])[0] / policy.recipe.selector.scale
    assert plain.predict(pairs).tolist() == pytest.approx(scores.tolist(), abs=1e-4)


def test_long_documents_are_cut_and_counted(models):
    policy = make_policy("bi", models)
    long = Document("Kovac hometown", "the Lyon " * 100)
    example = replace(EXAMPLE, candidates=(long, *EXAMPLE.candidates[1:]))
    rollouts = policy.worker.select([example, EXAMPLE], 1, 0)
    assert [r.truncated_documents for r in rollouts] == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_went_through_the_encoder_is_counted_once(kind, models):
    policy = make_policy(kind, models)
    policy.worker.load_weights(policy.learner.weights(), 0)
    policy.worker.statistics()
    examples = [make_example(1), make_example(2)]
    policy.worker.select(examples, 4, 0)
    first = policy.worker.statistics().computed
    policy.worker.select(examples, 4, 0)
    assert first > 0 and policy.worker.statistics().computed == 0


@pytest.mark.parametrize("kind", ["bi, conditional", "cross, conditional"])
def test_an_engine_reads_a_text_once_by_the_same_weights(kind, models, monkeypatch):
    policy = make_policy(kind, models)
    read = Counter()
    run = policy.worker._encoder._run
    monkeypatch.setattr(
        policy.worker._encoder, "_run", lambda texts, *more: read.update(texts) or run(texts, *more)
    )
    policy.worker.select([EXAMPLE, make_example(1)], 8, seed=0)
    assert len(read) > 10 and set(read.values()) == {1}
