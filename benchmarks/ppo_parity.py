"""Our PPO against TRL's: the same rollouts, GAE, normalisation, both losses and the gradient.

    pip install --no-deps --target FOLDER "trl==1.12.*"
    python benchmarks/ppo_parity.py FOLDER

TRL had PPO (trl.experimental.ppo) up to 1.12; FOLDER is any empty one outside the environment,
whose other packages serve. TRL's train() runs once: its sampling is replaced by given completions,
its reward model by given rewards, and between sampling and loss the weights change, so that the
clips bind. Its value model is a linear head on the policy's own hidden states, as ours is. GAE is
read off what TRL hands to `masked_whiten`, the losses off its metrics, the gradient off the
optimiser. Prints a row a quantity and exits with 1 where an error exceeds `TOLERANCE`.

Three differences are taken out, and are differences:
- TRL averages its losses over tokens, we sum over tokens and average over selections: here all
  completions have T tokens, and its losses are multiplied by T.
- TRL whitens by the sample variance (n - 1), we by the population's (n): here TRL's is told to take
  n; the table shows what its own gives beside it. It is a factor of sqrt(1 - 1/n).
- Where a completion is shorter than the longest one of the batch, TRL gives the reward to the first
  padding position behind it, as if that were one more state with a value and an action. We give
  it to the last token, as GAE's eq. 16 has it. With completions of one length the two are equal.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
warnings.filterwarnings("ignore", message="TRL currently supports vLLM", category=UserWarning)

from benchmarks.ppo_of_trl import theirs  # noqa: E402
from benchmarks.ppo_problem import (  # noqa: E402
    QUESTIONS,
    SAMPLES,
    SETTINGS,
    TOKENS,
    Problem,
    Side,
    make_problem,
)
from dro_rl.algorithms import Group, weigh  # noqa: E402
from dro_rl.learner import Learner  # noqa: E402
from dro_rl.records import WeightedRollout  # noqa: E402

TOLERANCE = 1e-4


# --- ours -----------------------------------------------------------------------------------------


def ours(problem: Problem) -> Side:
    """Through `values`, `weigh` and the learner."""
    recipe = problem.recipe
    learner = Learner(recipe, "selector", recipe.selector.model, 1, 1e-3)
    head = learner.objective.value_head
    assert head is not None
    learner.model.load_state_dict(problem.sampled[0])
    head.load_state_dict(problem.sampled[1])
    groups = [
        Group(r.example.id, tuple(math.log(v) if v else -math.inf for v in rewards), values=values)
        for r, rewards, values in zip(
            problem.rollouts, problem.rewards, learner.values(problem.rollouts), strict=True
        )
    ]
    plain, _ = weigh(recipe.algorithm.model_copy(update={"normalise": False}), groups)
    weighed, _ = weigh(recipe.algorithm, groups)
    learner.model.load_state_dict(problem.current[0])
    head.load_state_dict(problem.current[1])
    batch = [
        WeightedRollout(r, c.selector, c.generator, c.tokens)
        for r, c in zip(problem.rollouts, weighed, strict=True)
    ]
    totals = learner.backward([learner.objective.targets(w) for w in batch])
    before, after = (
        torch.tensor([t.advantages for c in w for t in c.tokens]) for w in (plain, weighed)
    )
    value_loss = totals.value_loss
    return Side(
        before,
        after,
        totals.loss - SETTINGS["value_weight"] * value_loss,
        value_loss,
        totals.clipped,
        {n: p.grad.clone() for n, p in learner.trainable.items()},
    )


# --- the comparison -------------------------------------------------------------------------------


def gaps(reference: Side, other: Side) -> dict[str, float]:
    """Relative errors of `other` by quantity: the norm of the difference over the norm."""

    def apart(wanted: Tensor, got: Tensor) -> float:
        return ((got - wanted).norm() / wanted.norm()).item()

    assert reference.gradient.keys() == other.gradient.keys()
    flat = [
        torch.cat([s.gradient[n].flatten() for n in reference.gradient]) for s in (reference, other)
    ]
    found = {
        "GAE": apart(reference.advantages, other.advantages),
        "normalised": apart(reference.normalised, other.normalised),
        "gradient": apart(*flat),
    }
    for name in ("policy_loss", "value_loss", "clipped"):
        wanted, got = getattr(reference, name), getattr(other, name)
        found[name] = abs(got - wanted) / abs(wanted)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", help="where pip put trl 1.12")
    sys.path.insert(0, parser.parse_args().folder)
    import trl

    if not trl.__version__.startswith("1.12."):
        print(f"found trl {trl.__version__} instead of 1.12: see {__file__}", file=sys.stderr)
        return 2
    disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        problem = make_problem(Path(folder))
        own = ours(problem)
        found = gaps(theirs(problem, sample_variance=False), own)
        as_it_is = gaps(theirs(problem, sample_variance=True), own)
    n = QUESTIONS * SAMPLES * TOKENS
    print(f"policy loss {own.policy_loss:.6f}, value loss {own.value_loss:.6f}, ", end="")
    print(f"clipped {own.clipped:.2f} of {n} tokens\n")
    print(f"{'relative error':<16} {'variance / n':>14} {'TRL: / (n - 1)':>15}")
    for name, value in found.items():
        print(f"{name:<16} {value:>14.1e} {as_it_is[name]:>15.1e}")
    print(f"\nsqrt(1 - 1/n) is 1 - {1 - math.sqrt(1 - 1 / n):.1e}")
    return 0 if max(found.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
