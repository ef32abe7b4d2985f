"""The clipped-ratio losses against loops over tokens, with padding and selections drawn twice."""

import math
import random
from collections import Counter

import pytest
import torch
from pydantic import TypeAdapter

from dro_rl.algorithms.losses import Tokens, divergence, selector_loss
from dro_rl.sections.algorithm import Algorithm

M = 6
DRAWN = [0, 1, 2, 0, 3, 0]  # of four selections, one three times
LENGTHS = [2, 4, 1, 3]
KINDS = [
    "grpo",
    "grpo kl=0.3",
    "grpo scale=none",
    "grpo scale=none kl=0.3 clip=0.1",
    "rloo",
    "rloo clip=0.1",
    "rloo kl=0.3",
    "dro kl=0.3",
    "reinforce kl=0.3",
    "ppo",
    "ppo kl=0.3",
    "ppo clip=0.1 value_weight=2 value_clip=0.05",
]


def section(text: str) -> Algorithm:
    kind, *options = text.split()
    return TypeAdapter(Algorithm).validate_python(
        {"kind": kind, **dict(o.split("=") for o in options)}
    )


def make_selections(algorithm: Algorithm) -> list[dict]:
    """Four selections of different lengths whose ratios lie within the clip and beyond it on both
    sides. An advantage is over m; PPO has one a token."""
    draw = random.Random(0)
    spread = 0.12 if algorithm.clips == "selections" else 0.3
    selections = []
    for n in LENGTHS:
        sampled = [draw.uniform(-3, -0.1) for _ in range(n)]
        one = draw.gauss(0, 1) / M
        selections.append(
            {
                "sampled": sampled,
                "logps": [p + draw.gauss(0, spread) for p in sampled],
                "reference": [p + draw.gauss(0, 0.5) for p in sampled],
                "advantages": [draw.gauss(0, 1) / M for _ in range(n)]
                if algorithm.kind == "ppo"
                else [one] * n,
                "values": [draw.gauss(0, 0.3) for _ in range(n)],
                "sampled_values": [draw.gauss(0, 0.3) for _ in range(n)],
                "returns": [draw.gauss(0, 1) for _ in range(n)],
            }
        )
    return selections


def padded(rows: list[list[float]], filler: float = 0.0) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([r + [filler] * (width - len(r)) for r in rows], dtype=torch.float64)


def make_tokens(algorithm: Algorithm, selections: list[dict], times: list[int]) -> Tokens:
    """Rows of selections, each for so many draws; logps and values take gradients."""
    of = {
        name: padded([s[name] for s in selections], 0.0 if name == "advantages" else -0.7)
        for name in selections[0]
    }
    times_B = torch.tensor(times, dtype=torch.float64)
    ppo = algorithm.kind == "ppo"
    return Tokens(
        of["logps"].requires_grad_(),
        of["sampled"],
        of["advantages"] * times_B[:, None],
        times_B / M,
        padded([[1.0] * len(s["logps"]) for s in selections]),
        of["reference"] if algorithm.kl else None,
        of["values"].requires_grad_() if ppo else None,
        of["sampled_values"] if ppo else None,
        of["returns"] if ppo else None,
    )


def clipped_term(ratio: float, advantage: float, clip: float) -> tuple[float, bool]:
    """PPO's eq. 7, and whether the clip took the gradient away."""
    bounded = min(max(ratio, 1 - clip), 1 + clip)
    return min(ratio * advantage, bounded * advantage), bounded * advantage < ratio * advantage


def naive(algorithm: Algorithm, selections: list[dict]) -> dict[str, float]:
    """Loss, clipped share, divergence and value loss, one draw after another."""
    out = Counter(loss=0.0, clipped=0.0, kl=0.0, value_loss=0.0)
    for s in selections:
        n = len(s["logps"])
        over = n if algorithm.kind == "grpo" and algorithm.scale == "std" else 1
        for t in range(n if algorithm.kl else 0):
            u = math.exp(s["reference"][t] - s["logps"][t])
            k3 = u - math.log(u) - 1
            out["kl"] += k3 / over / M
            out["loss"] += algorithm.kl * k3 / over / M
        if algorithm.clips == "no":
            out["loss"] -= s["advantages"][0] * sum(s["logps"])
            continue
        ratios = [math.exp(p - q) for p, q in zip(s["logps"], s["sampled"], strict=True)]
        if algorithm.kind == "rloo":
            term, outside = clipped_term(math.prod(ratios), s["advantages"][0], algorithm.clip)
            out["loss"] -= term
            out["clipped"] += outside / M
            continue
        for t in range(n):
            term, outside = clipped_term(ratios[t], s["advantages"][t], algorithm.clip)
            out["loss"] -= term / over
            out["clipped"] += outside / n / M
            if algorithm.kind == "ppo":
                value, old, back = s["values"][t], s["sampled_values"][t], s["returns"][t]
                near = min(max(value, old - algorithm.value_clip), old + algorithm.value_clip)
                error = 0.5 * max((value - back) ** 2, (near - back) ** 2) / M
                out["value_loss"] += error
                out["loss"] += algorithm.value_weight * error
    return dict(out)


@pytest.mark.parametrize("text", KINDS)
def test_losses_are_those_of_a_loop_over_tokens(text):
    algorithm = section(text)
    selections = make_selections(algorithm)
    drawn = [selections[z] for z in DRAWN]
    wanted = naive(algorithm, drawn)
    parts = selector_loss(algorithm, make_tokens(algorithm, drawn, [1] * M))
    assert parts.loss.item() == pytest.approx(wanted["loss"], rel=1e-9)
    assert parts.clipped == pytest.approx(wanted["clipped"])
    assert 0 < parts.clipped < 1 or algorithm.clips == "no"
    assert parts.kl == pytest.approx(wanted["kl"], rel=1e-9)
    assert parts.value_loss == pytest.approx(wanted["value_loss"], rel=1e-9)


@pytest.mark.parametrize("text", KINDS)
def test_a_selection_drawn_thrice_is_one_row_of_three(text):
    """Equal loss, parts and gradient, whether equal selections are folded or not."""
    algorithm = section(text)
    selections, times = make_selections(algorithm), Counter(DRAWN)
    folded = make_tokens(algorithm, selections, [times[z] for z in range(4)])
    unfolded = make_tokens(algorithm, [selections[z] for z in DRAWN], [1] * M)
    one, many = selector_loss(algorithm, folded), selector_loss(algorithm, unfolded)
    assert one.loss.item() == pytest.approx(many.loss.item())
    assert (one.clipped, one.kl, one.value_loss) == pytest.approx(
        (many.clipped, many.kl, many.value_loss)
    )
    one.loss.backward()
    many.loss.backward()
    for ours, theirs in ((folded.logps, unfolded.logps), (folded.values, unfolded.values)):
        if ours is None or theirs is None:
            continue
        summed = torch.zeros_like(ours).index_add(0, torch.tensor(DRAWN), theirs.grad)
        torch.testing.assert_close(ours.grad, summed)


@pytest.mark.parametrize("text", ["grpo", "grpo scale=none", "rloo", "ppo value_weight=0"])
def test_the_gradient_is_the_ratio_times_the_advantage_and_0_where_clipped(text):
    """And 0 on what stands beyond a selection's end."""
    algorithm = section(text)
    selections = make_selections(algorithm)
    tokens = make_tokens(algorithm, selections, [1] * 4)
    selector_loss(algorithm, tokens).loss.backward()
    seen = Counter()
    for row, s in enumerate(selections):
        n = len(s["logps"])
        ratios = [math.exp(p - q) for p, q in zip(s["logps"], s["sampled"], strict=True)]
        if algorithm.kind == "rloo":
            ratios = [math.prod(ratios)] * n
        for t in range(n):
            _, outside = clipped_term(ratios[t], s["advantages"][t], algorithm.clip)
            over = n if text == "grpo" else 1
            wanted = 0.0 if outside else -ratios[t] * s["advantages"][t] / over
            assert tokens.logps.grad[row, t].item() == pytest.approx(wanted, rel=1e-9)
            seen[outside] += 1
        assert torch.all(tokens.logps.grad[row, n:] == 0)
    assert seen[True] and seen[False]


@pytest.mark.parametrize("text", ["grpo", "grpo scale=none", "rloo", "ppo value_weight=0"])
def test_at_the_policy_that_sampled_the_gradient_is_that_of_reinforce(text):
    """Ratio 1: nothing is clipped and the gradient is whole, though both sides of the minimum are
    equal there."""
    algorithm = section(text)
    selections = [s | {"logps": s["sampled"]} for s in make_selections(algorithm)]
    tokens = make_tokens(algorithm, selections, [1] * 4)
    parts = selector_loss(algorithm, tokens)
    parts.loss.backward()
    over = tokens.mask.sum(1, keepdim=True) if text == "grpo" else 1
    assert parts.clipped == 0
    torch.testing.assert_close(tokens.logps.grad, -tokens.advantages * tokens.mask / over)


def test_the_clip_binds_on_the_side_that_would_gain_alone():
    """A ratio of 2 with a positive advantage and of 1/2 with a negative one; not the reverse."""
    algorithm = section("grpo scale=none clip=0.2")
    logps = torch.tensor([[math.log(2)], [math.log(0.5)], [math.log(2)], [math.log(0.5)]])
    tokens = Tokens(
        logps.requires_grad_(),
        torch.zeros(4, 1),
        torch.tensor([[0.25], [-0.25], [-0.25], [0.25]]),
        torch.full((4,), 0.25),
        torch.ones(4, 1),
    )
    parts = selector_loss(algorithm, tokens)
    parts.loss.backward()
    assert parts.loss.item() == pytest.approx(-(1.2 - 0.8 - 2 + 0.5) / 4)
    assert parts.clipped == 0.5
    assert tokens.logps.grad[:, 0].tolist() == pytest.approx([0, 0, 0.5, -0.125])


def test_divergence_is_k3_by_hand():
    """e^gap - gap - 1 for gaps 0, log 2 and -1, and its gradient 1 - e^gap."""
    logps = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    found = divergence(logps, torch.tensor([-1.0, -1.0 + math.log(2), -2.0]))
    assert found.tolist() == pytest.approx([0, 1 - math.log(2), math.exp(-1)], abs=1e-6)
    found.sum().backward()
    assert logps.grad.tolist() == pytest.approx([0, -1, 1 - math.exp(-1)], abs=1e-6)


def test_divergence_estimates_the_kullback_leibler_divergence():
    """Its expectation under the policy, over three tokens: sum_t p log(p / reference)."""
    p, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.3, 0.6])
    found = (p * divergence(p.log(), reference.log())).sum()
    assert found.item() == pytest.approx((p * (p / reference).log()).sum().item(), rel=1e-5)
