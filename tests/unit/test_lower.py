"""The frozen layers' part of a pass is computed once a text, and changes no result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dro_rl.policy import lower
from dro_rl.policy.encoder import Encoder
from dro_rl.policy.encoder_files import load_encoder
from dro_rl.policy.lower import Kept, Lower
from dro_rl.policy.picks import State
from tests.encoders import make_bi_encoder, make_cross_encoder, make_encoder_recipe
from tests.tiny import make_example

pytestmark = pytest.mark.unit

STATES = [State(make_example()), State(make_example(1)), State(make_example(1), (2,))]


@pytest.fixture(autouse=True)
def nothing_kept():
    lower._kept.cache_clear()


@pytest.fixture(scope="module", params=["bi", "cross"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lower")
    make = make_bi_encoder if request.param == "bi" else make_cross_encoder
    return make(folder / request.param)


def load(model, dtype: str = "float32") -> Encoder:
    recipe = make_encoder_recipe(model, {"train": "last_layers", "layers": 1, "dtype": dtype})
    return load_encoder(recipe.selector, str(model))


def first_layer(encoder: Encoder) -> list[int]:
    """How many texts go through it, pass by pass."""
    texts, layers = list[int](), next(m for m in encoder.modules() if isinstance(m, nn.ModuleList))
    inner = layers[0].attention
    inner.register_forward_pre_hook(
        lambda _, args, more: texts.append(len(args[0])), with_kwargs=True
    )
    return texts


def gradients(encoder: Encoder) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    scores = encoder.scores(STATES)
    scores.softmax(1)[:, 0].sum().backward()
    return scores.detach(), {
        n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None
    }


def test_scores_and_gradients_are_those_of_the_whole_pass(model):
    encoder = load(model)
    begun_above = [gradients(encoder) for _ in range(2)]
    assert encoder.lower is not None and encoder.lower._works
    encoder.lower = None
    scores, found = gradients(encoder)
    for again, others in begun_above:
        assert torch.allclose(again, scores, rtol=1e-5, atol=1e-5)
        assert others.keys() == found.keys()
        for name, gradient in found.items():
            assert torch.allclose(others[name], gradient, rtol=1e-4, atol=1e-6), name


def test_hidden_states_of_another_precision_are_others(model):
    exact, low = load(model), load(model, "bfloat16")
    scores = [encoder.scores(STATES).detach() for encoder in (exact, low)]
    assert low.lower is not None and low.lower._works
    assert low.lower.kept.texts.keys() == exact.lower.kept.texts.keys()
    kept = zip(low.lower.kept.texts.values(), exact.lower.kept.texts.values(), strict=True)
    assert not any(torch.equal(one, other) for one, other in kept)
    low.lower = None
    for found in (scores[1], low.scores(STATES).detach()):
        one, other = (s - s.mean(1, keepdim=True) for s in (scores[0], found))
        assert (one - other).norm() < 0.25 * one.norm()


def test_a_text_goes_through_the_frozen_layers_once(model):
    encoder = load(model)
    encoder.scores(STATES)  # the first batch is tried both ways
    texts = first_layer(encoder)
    encoder.scores(STATES)
    assert texts == []
    load(model).scores(STATES)  # another of the same weights, as learner and engine are
    new = encoder.texts([State(make_example(2))])
    known = set(encoder.texts(STATES))
    encoder.scores([State(make_example(2))])
    assert texts == [1] * len(set(new) - known)


def test_a_full_store_keeps_what_it_has(model):
    encoder = load(model)
    before = encoder.scores(STATES)
    room = sum(hidden.nbytes for hidden in list(encoder.lower.kept.texts.values())[:3])
    encoder.lower.kept = Kept(room)
    assert torch.equal(encoder.scores(STATES), before)
    first = list(encoder.lower.kept.texts)
    assert 0 < len(first) <= 3 and encoder.lower.kept.room >= 0
    encoder.scores(STATES)
    assert list(encoder.lower.kept.texts) == first


class Couples(nn.Module):
    """Layers that hand on more than hidden states, as T5's do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Couple() for _ in range(2))

    def __iter__(self):  # as a model of sentence-transformers gives its modules
        return iter(self.layers)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        hidden, bias = features["input_ids"][..., None].float(), torch.tensor(1.0)
        for layer in self.layers:
            hidden, bias = layer(hidden, bias)
        return (hidden * features["attention_mask"][..., None]).sum((1, 2))


class Couple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * hidden + bias, bias + 1


def test_layers_that_hand_on_more_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(lower, "digest", lambda *_: "couples")
    model = Couples()
    encoder = Lower(model, model.layers, learned=1, dtype="float32")
    features = {
        "input_ids": torch.tensor([[1, 2], [3, 0]]),
        "attention_mask": torch.tensor([[1, 1], [1, 0]]),
    }
    assert encoder.run(["a", "b"], features, model).tolist() == model(features).tolist()
    assert encoder._works is False
