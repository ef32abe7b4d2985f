"""What one policy learns from a group: its loss terms, and their loss under the recipe's algorithm.

The generator's is always a weighted likelihood of reference answers. The selector's is a weighted
likelihood of selections, or a clipped ratio to the policy that sampled them; either may hold it
near the policy that training started with.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dro_rl.algorithms import Group, weigh
from dro_rl.algorithms.losses import Parts, Tokens, selector_loss
from dro_rl.passes import Passes
from dro_rl.policy import causal_lm, sharding
from dro_rl.policy.completion import AnyCompletion, AnyLikelihood, Completion
from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.policy.likelihood import Likelihood
from dro_rl.policy.targets import Target, answer_target, target_log_likelihoods
from dro_rl.ranks import ALONE, Ranks
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Rollout, ScoredRollout, WeightedRollout
from dro_rl.reward import Reward
from dro_rl.reward.scoring import answer_tokens, by_documents, document_lists, score_group
from dro_rl.sections.algorithm import PpoAlgorithm
from dro_rl.sections.policy import PolicySection


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The loss of a micro-batch and the log-likelihood [nats] of each of its targets."""

    parts: Parts
    logps: list[float]


class Objective:
    """One policy's.

    Args:
        recipe: the experiment.
        policy: which of its policies.
        model: the policy's, which learns.
        writer: of its prompts (a PromptWriter); an encoder has none.
        initial: folder or hub name of the model that training starts from.
        ranks: that hold the model together.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: PolicyName,
        model: Any,
        writer: Any,
        initial: str,
        ranks: Ranks = ALONE,
    ) -> None:
        self.recipe, self.model, self.writer = recipe, model, writer
        self.policy: PolicyName = policy
        self.algorithm, self.ranks = recipe.algorithm, ranks
        self.likelihood = self._likelihood_of(model)
        self.passes = Passes(self.likelihood, ranks, recipe.training.tokens_per_microbatch)
        selects = policy == "selector"
        self.clips = selects and self.algorithm.clips != "no"
        self.value_head: nn.Linear | None = None
        if selects and isinstance(self.algorithm, PpoAlgorithm):
            self.value_head = nn.Linear(model.get_output_embeddings().in_features, 1)
            nn.init.zeros_(self.value_head.weight)  # the value of every state is 0 at first
            nn.init.zeros_(self.value_head.bias)
            self.value_head.to(model.device)
        self._restrained = selects and self.algorithm.restrained
        self._reference: AnyLikelihood | None = None
        if self._restrained and recipe.policy(policy).lora is None:
            self._reference = self._frozen(initial)
            self._reference.checks_by_itself = False  # what holds for the policy holds for it
        self._grammars: dict[int, SelectionGrammar] = {}

    def _likelihood_of(self, model: Any) -> AnyLikelihood:
        return Likelihood(model, self._section.likelihood)

    def _frozen(self, name: str) -> AnyLikelihood:
        """Of the model of that name as it is."""
        model = self.ranks.load_model(self._section, name, training=False)
        self.ranks.divide(model, self._section)
        return self._likelihood_of(model)

    @property
    def _section(self) -> PolicySection:
        return self.recipe.causal_lm(self.policy)

    # --- loss terms -----------------------------------------------------------------------------

    def targets(self, weighted: WeightedRollout) -> list[Target]:
        """A group's loss terms; equal ones are added up, so each is computed once."""
        if self.policy == "generator":
            return self._generator_targets(weighted)
        rollout, first = weighted.rollout, {}
        total: defaultdict[tuple[int, ...], float] = defaultdict(float)
        drawn = Counter(s.token_ids for s in rollout.selections)
        for i, s in enumerate(rollout.selections):
            first.setdefault(s.token_ids, i)
            total[s.token_ids] += weighted.selector[i]
        keep_all = self.value_head is not None or self._restrained
        return [
            Target(
                (self.selection(rollout, ids),),
                total[ids],
                rollout.truncated_documents,
                rollout.selections[i].logps,
                drawn[ids] / len(rollout.selections),
                weighted.tokens[i] if weighted.tokens else None,
            )
            for ids, i in first.items()
            if keep_all or total[ids] != 0
        ]

    def _generator_targets(self, weighted: WeightedRollout) -> list[Target]:
        total = by_documents(weighted.rollout, weighted.generator)
        least = self.recipe.generator.prune
        return [
            self._answer(weighted.rollout, d, c) for d, c in total.items() if c != 0 and c >= least
        ]

    def answers(self, rollout: Rollout) -> list[Target]:
        """The reference answer after each different document list, in order of appearance."""
        return [self._answer(rollout, d, 0.0) for d in document_lists(rollout)]

    def _answer(self, rollout: Rollout, documents: Sequence[int], coefficient: float) -> Target:
        answers = self.recipe.generator.answers
        return answer_target(self.writer, rollout.example, documents, answers, coefficient)

    def selection(self, rollout: Rollout, token_ids: tuple[int, ...]) -> AnyCompletion:
        """A selection after its prompt, under the masks that it was sampled with."""
        if self.recipe.decoding == "free":
            return Completion(rollout.prompt_ids, token_ids)
        grammar = self._grammar(len(rollout.example.candidates))
        return Completion(rollout.prompt_ids, token_ids, grammar.allowed_table(token_ids))

    def _grammar(self, n: int) -> SelectionGrammar:
        if n not in self._grammars:
            k = 1 if self.recipe.decoding == "independent" else self.recipe.selector.documents
            self._grammars[n] = SelectionGrammar(self.writer, n, k)
        return self._grammars[n]

    # --- losses ---------------------------------------------------------------------------------

    def loss(self, targets: Sequence[Target]) -> Evaluated:
        """The sum of the targets' terms, with its graph."""
        if self.clips or self._restrained:
            return self._compared(targets)
        logps = self.log_likelihoods(targets)
        coefficients = torch.tensor([t.coefficient for t in targets], device=logps.device)
        return Evaluated(Parts(-(coefficients * logps).sum(), 0.0), logps.tolist())

    def scored_loss(
        self, reward: Reward, rollouts: Sequence[Rollout], targets: Sequence[Target]
    ) -> tuple[Evaluated, list[ScoredRollout]]:
        """The generator's loss on rollouts that are not scored yet: one forward pass gives the
        log-rewards, these the coefficients, and these the loss, with the graph of that pass.

        Args:
            reward: needs the likelihood and nothing else.
            targets: the rollouts' `answers`, joined.
        """
        logps = self.log_likelihoods(targets)
        # What is no number cannot be a reward; its gradient is none either, which ends the step.
        values = iter([-math.inf if math.isnan(p) else p for p in logps.tolist()])
        coefficients = list[float]()
        scored = []
        for rollout in rollouts:
            table = {documents: next(values) for documents in document_lists(rollout)}
            length = answer_tokens(self.writer, rollout.example)
            scored.append(score_group(reward, rollout, table, length))
            group = Group(rollout.example.id, scored[-1].log_rewards, answer_tokens=length)
            (weighed,), _ = weigh(self.algorithm, [group])
            coefficients += by_documents(rollout, weighed.generator).values()
        used = [i for i, c in enumerate(coefficients) if c]  # 0 times -inf would be nan
        factors = torch.tensor([coefficients[i] for i in used], device=logps.device)
        loss = -(factors * logps[used]).sum()
        return Evaluated(Parts(loss, 0.0), logps.tolist()), scored

    def _compared(self, targets: Sequence[Target]) -> Evaluated:
        """With the policy that sampled, or with the one that training started with."""
        completions = [t.completions[0] for t in targets]
        values = None
        with self._autocast():
            if self.value_head is not None:
                logps, values = self.with_values(completions, self.value_head)
            else:
                logps = self.likelihood.tokens(completions)
        reference = None
        if self._restrained:
            with torch.no_grad(), self._as_reference() as likelihood, self._autocast():
                reference = likelihood.tokens(completions)

        def padded(rows: Sequence[Sequence[float]]) -> Tensor:
            out = torch.zeros(logps.shape)
            for i, row in enumerate(rows):
                out[i, : len(row)] = torch.tensor(row)
            return out.to(logps.device)

        # A selection's advantage is that of each of its tokens, but PPO's tokens have their own.
        advantages = [
            [a * t.share for a in t.tokens.advantages]
            if t.tokens
            else [t.coefficient] * len(t.logq)
            for t in targets
        ]
        tokens = Tokens(
            logps,
            padded([t.logq for t in targets]),
            padded(advantages),
            torch.tensor([t.share for t in targets], device=logps.device),
            padded([[1.0] * len(t.logq) for t in targets]),
            reference,
            values,
            padded([t.tokens.values for t in targets if t.tokens]) if values is not None else None,
            padded([t.tokens.returns for t in targets if t.tokens]) if values is not None else None,
        )
        parts = selector_loss(self.algorithm, tokens)
        return Evaluated(parts, logps.detach().sum(1).tolist())

    @contextmanager
    def _as_reference(self) -> Iterator[AnyLikelihood]:
        """The selector as it was when training started."""
        if self._reference is not None:
            self._reference.why_dense = self.likelihood.why_dense
        disabled = nullcontext() if self._reference is not None else self.model.disable_adapter()
        with disabled:
            yield self._reference or self.likelihood

    def log_likelihoods(self, targets: Sequence[Target]) -> Tensor:
        """log p of each target [nats], with its graph."""
        with self._autocast():
            return target_log_likelihoods(self.likelihood, targets)

    # --- reading --------------------------------------------------------------------------------

    def with_values(self, completions: Sequence[Any], head: nn.Linear) -> tuple[Tensor, Tensor]:
        """See `Likelihood.tokens_and_values`: an encoder has no value head."""
        assert isinstance(self.likelihood, Likelihood)
        return self.likelihood.tokens_and_values(completions, head)

    def tokens(self, completion: AnyCompletion) -> list[float]:
        """log p of each token of a completion [nats]."""
        with self.reading():
            return self.likelihood.tokens([completion])[0].tolist()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """No gradient and no dropout."""
        self.model.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield
        finally:
            self.model.train()
            sharding.free(self.model)

    def _autocast(self) -> AbstractContextManager:
        """Parts of a model have their own way into bfloat16."""
        alone = self.ranks.size == 1
        return causal_lm.autocast(self._section, self.model) if alone else nullcontext()
