"""What is refused of an encoder, and of a recipe without a generator: one clear message each."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from pydantic import ValidationError

from dro_rl.encoder_warmup import drawing, targets
from dro_rl.errors import UserError
from dro_rl.policy.encoder_files import check_encoder, load_encoder
from dro_rl.policy.picks import State
from dro_rl.recipe_file import apply_override, load_recipe, make_recipe, merge
from dro_rl.records import Document, Outcome
from dro_rl.reward import load_reward
from dro_rl.sections.encoder import EncoderSelector
from tests.encoders import make_bi_encoder, make_cross_encoder, make_encoder_recipe
from tests.tiny import make_example

pytestmark = pytest.mark.unit


def section(model, **settings) -> EncoderSelector:
    return EncoderSelector(kind="encoder", model=str(model), documents=2, **settings)


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_bi_encoder(tmp_path_factory.mktemp("model") / "bi")


def test_an_encoder_without_pooling(model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    modules = json.loads((broken / "modules.json").read_text())
    kept = [m for m in modules if "Pooling" not in m["type"]]
    (broken / "modules.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match="broken has no pooling"):
        check_encoder(section(broken), str(broken))
    (broken / "modules.json").unlink()
    with pytest.raises(UserError, match="broken has no pooling"):
        load_encoder(section(broken), str(broken))


def test_an_encoder_without_a_tokenizer(model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    with pytest.raises(UserError, match="broken has no tokenizer"):
        check_encoder(section(broken), str(broken))


def test_a_damaged_encoder(model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="broken cannot be loaded as an encoder"):
        load_encoder(section(broken), str(broken))
    (broken / "modules.json").write_text("{")
    with pytest.raises(UserError, match="modules.json is not JSON"):
        check_encoder(section(broken), str(broken))


def test_a_folder_that_is_not_there():
    with pytest.raises(UserError, match="selector.model: ./nowhere is neither a folder"):
        check_encoder(section("./nowhere"), "./nowhere")


def test_a_cross_encoder_has_no_head_apart_and_one_score(tmp_path):
    one = make_cross_encoder(tmp_path / "one")
    with pytest.raises(UserError, match="selector.train: head is a linear map of a bi-encoder's"):
        check_encoder(section(one, train="head"), str(one))
    three = make_cross_encoder(tmp_path / "three", labels=3)
    with pytest.raises(UserError, match="gives 3 numbers a pair"):
        load_encoder(section(three), str(three))


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"selector": {"documents": 6}}, "selector.documents \\(6\\) exceeds"),
        ({"algorithm": {"kind": "ppo"}}, "algorithm.kind: ppo is for a selector that is a causal"),
        ({"algorithm": {"kind": "independent"}}, "algorithm.kind: independent is for a selector"),
        ({"rollout": {"decoding": "distinct"}}, "rollout.decoding: an encoder picks distinct"),
        (
            {"rollout": {"top_k": 3, "allow_biased_sampling": True}},
            "top_p and top_k are of tokens",
        ),
        (
            {"algorithm": {"train": ["selector", "generator"]}},
            "generator: none leaves nothing to train there",
        ),
        (
            {"training": {"early_stop": {"metric": "em"}}},
            "early_stop.metric: em is not evaluated without a generator: name gold_recall or rew",
        ),
        ({"selector": {"max_new_tokens": 8}}, "max_new_tokens"),
    ],
)
def test_settings_that_do_not_go_together(model, changes, told):
    with pytest.raises(ValidationError, match=told):
        make_encoder_recipe(model, changes.pop("selector", None), **changes)


def test_settings_of_the_other_kind_are_named(model):
    settings = make_encoder_recipe(model).resolved()
    settings["selector"]["likelihood"] = "dense"
    with pytest.raises(UserError, match="selector.likelihood: belongs to kind: causal_lm"):
        make_recipe(settings, "here")
    settings["selector"] = {"kind": "decoder", "model": "m"}
    with pytest.raises(UserError, match="selector.kind: must be one of 'causal_lm', 'encoder'"):
        make_recipe(settings, "here")


def test_the_recipe_is_written_as_it_was_read(model):
    recipe = make_encoder_recipe(model)
    settings = recipe.resolved()
    assert settings["generator"] == "none" and settings["selector"]["kind"] == "encoder"
    assert make_recipe(settings, "again") == recipe
    assert recipe.policies == ("selector",) and recipe.generator.is_none
    demo = load_recipe("recipes/demo.yaml")
    assert demo.selector.kind == "causal_lm" and not demo.generator.is_none


def test_an_encoder_takes_the_place_of_a_base_recipes_llm():
    base = {
        "selector": {"model": "m", "lora": {"rank": 4}, "documents": 3},
        "generator": {"model": "g"},
    }
    merged = merge(base, {"selector": {"kind": "encoder", "model": "e"}, "generator": "none"})
    assert merged["selector"] == {"kind": "encoder", "model": "e", "documents": 3}
    assert merged["generator"] == "none"
    apply_override(base, "generator=none")
    assert base["generator"] == "none"


# --- what it learns from --------------------------------------------------------------------------


def test_answers_in_documents_are_whole_words_and_no_yes():
    reward = load_reward("rewards/answer_in_documents.py")
    documents = (
        Document("Lyonnaise cooking", "Of Lyons."),
        Document("The city of Lyon", "Yes, it is a city."),
        Document("Oslo", "It is not the New-York of the North."),
    )
    example = make_example().__class__("q", "Where?", ("the Lyon!", "yes"), documents)

    def scored(*chosen: int, answers=("the Lyon!", "yes")) -> float:
        told = make_example().__class__("q", "Where?", answers, documents)
        return reward.score([Outcome(told, chosen)])[0]

    assert reward.score([Outcome(example, (0, 1))]) == [1.0]
    assert (scored(0), scored(1), scored(0, 2), scored()) == (0, 1, 0, 0)
    assert scored(1, answers=("yes",)) == 0
    assert scored(2, answers=("New-York",)) == 1


def test_warm_up_needs_gold_documents(model):
    from dataclasses import replace

    example = make_example()
    plain = tuple(Document(d.title, d.text) for d in example.candidates)
    recipe = make_encoder_recipe(model)
    with pytest.raises(UserError, match="no training question has one"):
        drawing(recipe, recipe.selector, [replace(example, candidates=plain)])


def test_the_supervised_loss_is_cross_entropy_of_the_gold_documents(model):
    """Against the candidates, and against the batch's other gold documents too."""
    recipe = make_encoder_recipe(model, warmup={"batch_size": 3})
    encoder = load_encoder(recipe.selector, recipe.selector.model)
    (target,) = targets(recipe.selector, make_example(1), random.Random(0))
    (picks,) = target.completions
    assert (picks.token_ids, target.coefficient) == ((0,), 1.0)
    from dro_rl.policy.encoder_likelihood import EncoderLikelihood

    with torch.no_grad():
        logp = EncoderLikelihood(encoder).of([picks])
        scores = encoder.scores([State(make_example(1))])
    assert -float(logp) == pytest.approx(
        float(torch.nn.functional.cross_entropy(scores, torch.tensor([0]))), abs=1e-5
    )
    in_batch = make_encoder_recipe(model, warmup={"batch_size": 3, "negatives": "batch"})
    groups = drawing(in_batch, in_batch.selector, [make_example(i) for i in range(3)])()
    sizes = [len(t.completions[0].example.candidates) for group in groups for t in group]
    assert len(sizes) == 3 and all(5 <= size <= 7 for size in sizes) and max(sizes) > 5


def test_supervised_batches_are_passes_over_all_questions(model):
    questions = [make_example(i) for i in range(5)]
    recipe = make_encoder_recipe(model, warmup={"batch_size": 2})
    draw = drawing(recipe, recipe.selector, questions)
    drawn = [
        target.completions[0].example.id for _ in range(5) for group in draw() for target in group
    ]
    passes = [drawn[:5], drawn[5:]]
    assert [sorted(some) for some in passes] == [sorted(e.id for e in questions)] * 2
    assert passes[0] != passes[1]
