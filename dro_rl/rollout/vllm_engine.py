"""The vLLM engine, inside the process that makes it.

Set `engine_environment` before that process imports torch. The engine changes its host: on the
CPU `torch.set_num_threads` becomes a no-op, and sampling seeds torch's global generator. With
`rollout.tensor_parallel` the model is divided among processes that the host starts, and that end
with it; the scheduler and the prefix cache's books stay here.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from dro_rl.errors import UserError
from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.rollout.engine import Sample, Tokens, Usage
from dro_rl.rollout.quiet import quiet
from dro_rl.sections.policy import PolicySection
from dro_rl.sections.process import RolloutSection

with quiet():
    import vllm
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.logprobs import FlatLogprobs
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput
    from vllm.platforms import current_platform
    from vllm.v1.metrics.stats import PrefixCacheStats

    from dro_rl.rollout.distinct_processor import DistinctProcessor, distinct_arguments

_CPU_BLOCK = 32
"""Tokens a block of the prefix cache on the CPU. Whole blocks are shared: with vLLM's 128 the
samples of one 100-token prompt share nothing and sampling takes 2.5 times as long. 32 is the
smallest that its CPU kernels take."""


class VllmEngine:
    """Samples from one causal LM.

    Args:
        model_dir: a folder in Hugging Face format, or a hub name.
        section: of the policy.
        rollout: of the recipe.
        seed: of the engine; each call of `generate` brings its own.
        llm: one that is started already, which other engines use too.
    """

    name = "vllm"
    version: str = vllm.__version__

    def __init__(
        self,
        model_dir: str,
        *,
        section: PolicySection,
        rollout: RolloutSection,
        seed: int,
        llm: LLM | None = None,
    ) -> None:
        self._section, self._rollout = section, rollout
        self._llm = llm or start_llm(model_dir, section, rollout, seed)
        self._adapter: LoRARequest | None = None
        config = self._llm.llm_engine.model_config.hf_text_config
        self._tied = bool(getattr(config, "tie_word_embeddings", False))
        self._cache = _counting_cache(self._llm)
        self.usage = Usage()

    def generate(
        self,
        prompts: Sequence[Tokens],
        *,
        samples: int,
        seed: int,
        greedy: bool = False,
        on_policy: bool = False,
        grammars: Sequence[SelectionGrammar] | None = None,
    ) -> list[list[Sample]]:
        """See Engine.generate.

        The prefix cache starts empty: what it holds decides how requests are batched, and so
        which random number each one draws.
        """
        parameters = [
            self._parameters(samples, greedy, on_policy, grammars[i] if grammars else None)
            for i in range(len(prompts))
        ]
        self._reset_prefix_cache()
        self._llm.collective_rpc(_seed, args=(seed,))
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(p)) for p in prompts],
            parameters,
            use_tqdm=False,
            lora_request=self._adapter,
        )
        groups = [[_sample(o) for o in output.outputs] for output in outputs]
        counted = self._cache.make_prefix_cache_stats()  # and resets them
        sampled = sum(len(s.token_ids) for group in groups for s in group)
        self.usage += Usage(counted.queries, counted.hits, sampled)
        return groups

    def score(self, prompt_ids: Tokens, completion_ids: Tokens) -> list[float]:
        """See Engine.score.

        The last token is scored as the one token to generate, so that a completion which fills
        the context fits. vLLM does not read its prefix cache when prompts are scored.
        """
        *head, last = completion_ids
        parameters = SamplingParams(
            temperature=0,
            max_tokens=1,
            prompt_logprobs=0,
            logprob_token_ids=[last],
            detokenize=False,
        )
        prompt = TokensPrompt(prompt_token_ids=[*prompt_ids, *head])
        output = self._llm.generate(
            [prompt], parameters, use_tqdm=False, lora_request=self._adapter
        )[0]
        assert output.prompt_logprobs is not None and output.outputs[0].logprobs is not None
        rows = [*output.prompt_logprobs[len(prompt_ids) :], output.outputs[0].logprobs[0]]
        return [row[token].logprob for row, token in zip(rows, completion_ids, strict=True) if row]

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See Engine.load_weights.

        A tied checkpoint has no output embedding, and vLLM ties the two when it starts; but on
        the CPU it keeps a packed copy of the output embedding, which a reload leaves stale,
        silently, unless the weights name it too.

        Raises:
            RuntimeError: vLLM kept the keys and values of the old weights.
        """
        named = dict(weights)
        if self._tied and "lm_head.weight" not in named:
            named["lm_head.weight"] = named[_input_embedding(named)]
        if self._rollout.tensor_parallel > 1:
            self._reload_from_file(named)
        else:
            whole = iter(named.items())
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": whole})
        self._reset_prefix_cache()

    def _reload_from_file(self, named: Mapping[str, Tensor]) -> None:
        """Have every process that holds a part of the model read its own, which it maps into
        memory: a message would bring the whole to each."""
        with tempfile.TemporaryDirectory() as folder:
            apart = {name: tensor.clone() for name, tensor in named.items() if "lm_head" in name}
            save_file({**named, **apart}, Path(folder) / "model.safetensors")
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})

    def _reset_prefix_cache(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests are still running")

    def _parameters(
        self, samples: int, greedy: bool, on_policy: bool, grammar: SelectionGrammar | None
    ) -> SamplingParams:
        rollout, plain = self._rollout, greedy or on_policy
        return SamplingParams(
            n=samples,
            temperature=0.0 if greedy else 1.0 if on_policy else rollout.temperature,
            top_p=1.0 if plain else rollout.top_p,
            top_k=0 if plain else rollout.top_k,
            max_tokens=self._section.max_new_tokens,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            extra_args=distinct_arguments(grammar) if grammar else None,
        )


def start_llm(
    model_dir: str, section: PolicySection, rollout: RolloutSection, seed: int, **more: Any
) -> LLM:
    """A vLLM engine in this process; `more` are arguments of its own.

    Raises:
        UserError: the model cannot be divided among so many processes.
    """
    on_cpu, shards = current_platform.is_cpu(), rollout.tensor_parallel
    if shards > 1:
        _check_divides(model_dir, shards)
        more |= {"tensor_parallel_size": shards, "distributed_executor_backend": "mp"}
    _mend_llvmlite()
    with quiet():
        return LLM(
            model_dir,
            load_format="safetensors",
            trust_remote_code=False,
            dtype=section.dtype,
            seed=seed,
            max_model_len=section.max_length,
            max_num_seqs=rollout.max_sequences,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            enable_prefix_caching=True,
            block_size=_CPU_BLOCK if on_cpu else None,
            enforce_eager=on_cpu,
            logprobs_mode="processed_logprobs",
            logits_processors=[DistinctProcessor],
            generation_config="vllm",  # the tokenizer's end of sequence is the only one
            use_tqdm_on_load=False,
            **more,
        )


def _check_divides(model_dir: str, shards: int) -> None:
    config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False).get_text_config()
    heads = config.num_attention_heads
    if heads % shards:
        raise UserError(
            f"rollout.tensor_parallel: {shards} does not divide the {heads} attention heads of "
            f"{model_dir}: give a number that does"
        )


def _seed(worker: object, seed: int) -> None:
    """In each process that samples: all of them draw, and have to draw the same."""
    torch.manual_seed(seed)


def _sample(output: CompletionOutput) -> Sample:
    """With `logprobs=0` each position has one entry, the sampled token's."""
    assert isinstance(output.logprobs, FlatLogprobs)
    assert len(output.logprobs.logprobs) == len(output.token_ids)
    return Sample(tuple(output.token_ids), tuple(output.logprobs.logprobs))


def _counting_cache(llm: LLM) -> Any:
    """The prefix cache's manager, told to count, prompt by prompt, what it finds.

    vLLM's own report of it is no use here: a request of n samples tells of one of them, and its
    metrics are one set a process, which two engines of local mode would share.
    """
    manager = cast(Any, llm.llm_engine.engine_core).engine_core.scheduler.kv_cache_manager
    manager.log_stats, manager.prefix_cache_stats = True, PrefixCacheStats()
    return manager


def _input_embedding(names: Iterable[str]) -> str:
    for name in names:
        if name.endswith(("embed_tokens.weight", "wte.weight")):
            return name
    raise RuntimeError("the output embedding is tied, but no input embedding is among the weights")


def _mend_llvmlite() -> None:
    """Without a GPU, vLLM reads the `__dict__` of all that any loaded module holds. llvmlite, which
    BM25's numba loads in local mode, holds an object that answers every name with a function."""
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is None or getattr(type(ffi.lib), "mended", False):
        return
    answer = type(ffi.lib).__getattr__

    def without_dict(self: object, name: str) -> object:
        if name == "__dict__":
            raise AttributeError(name)
        return answer(self, name)

    type(ffi.lib).__getattr__ = without_dict
    type(ffi.lib).mended = True
