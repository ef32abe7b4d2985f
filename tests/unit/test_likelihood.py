"""log p(completion | prompt) against the plainest forward there is: one unpadded row at a time."""

import pytest
import torch

from dro_rl.policy.likelihood import Completion, log_likelihood, token_log_likelihoods
from dro_rl.policy.targets import Target, target_log_likelihoods
from tests.models import make_llama

RAGGED = [
    Completion((1, 7, 9, 12), (5, 6)),
    Completion((1, 7), (8, 9, 10, 2)),
    Completion((1, 30, 31, 32, 33, 34, 35), (2,)),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"), hidden=32, context=64)


def plain(model, completion: Completion) -> torch.Tensor:
    ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    logps = model(ids).logits[0, :-1].float().log_softmax(-1)
    start = len(completion.prompt_ids) - 1
    return torch.stack([logps[start + i, t] for i, t in enumerate(completion.token_ids)])


def test_ragged_batch_equals_one_row_at_a_time(model):
    got = token_log_likelihoods(model, RAGGED)
    for row, completion in zip(got, RAGGED, strict=True):
        n = len(completion.token_ids)
        torch.testing.assert_close(row[:n], plain(model, completion), atol=1e-5, rtol=0)
        assert torch.all(row[n:] == 0)


def test_gradient_equals_one_row_at_a_time(model):
    weights = torch.tensor([0.7, -0.2, 1.5])
    (weights * log_likelihood(model, RAGGED)).sum().backward()
    fast = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    sum(w * plain(model, c).sum() for w, c in zip(weights, RAGGED, strict=True)).backward()
    for got, parameter in zip(fast, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, atol=1e-5, rtol=1e-4)
    model.zero_grad()


def test_allowed_tokens_renormalise(model):
    allowed = [[5, 6, 7], [2]]
    masked = Completion((1, 7, 9, 12), (6, 2), allowed)
    free = Completion((1, 7, 9, 12), (6, 2))
    got = token_log_likelihoods(model, [masked, free])
    logits = model(torch.tensor([[1, 7, 9, 12]])).logits[0, -1].float()
    wanted = logits[6] - logits[[5, 6, 7]].logsumexp(0)
    torch.testing.assert_close(got[0, 0], wanted, atol=1e-5, rtol=0)
    assert got[0, 1].item() == 0  # the only token allowed is certain
    torch.testing.assert_close(got[1], plain(model, free), atol=1e-5, rtol=0)


def test_alternative_answers_add_up(model):
    one, two = Completion((1, 7), (5, 2)), Completion((1, 7), (6, 9, 2))
    got = target_log_likelihoods(model, [Target((one, two)), Target((one,))])
    parts = torch.stack([plain(model, one).sum(), plain(model, two).sum()])
    torch.testing.assert_close(got, torch.stack([parts.logsumexp(0), parts[0]]), atol=1e-5, rtol=0)


def test_logits_are_made_where_a_row_needs_them_alone(model, monkeypatch):
    kept = []
    forward = model.forward

    def spy(**inputs):
        kept.append(len(inputs["logits_to_keep"]))
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", spy)
    token_log_likelihoods(model, [Completion((1, 5), (6, 2)), Completion((1,) * 30, (6, 2))])
    assert kept == [4]
