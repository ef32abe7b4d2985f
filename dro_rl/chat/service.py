"""A run's pair, served until a signal ends it: from this process, or through Ray Serve."""

from __future__ import annotations

from pathlib import Path

from dro_rl.chat.answering import Answering, Service
from dro_rl.checkpoint import policies_of
from dro_rl.errors import UserError
from dro_rl.jsonlines import located
from dro_rl.listening import address_of, answer_until_a_signal, listen, warn_if_open
from dro_rl.recipe import Recipe
from dro_rl.remote import bearer_token
from dro_rl.rollout.environment import has_gpu
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.sections.retrieval import CorpusSection
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory

_CONNECTIONS = 64  # without Ray Serve; a further one is answered 503
_LARGEST_SHARE = 0.95  # of a GPU's memory, for both engines: the rest is CUDA's own


def serve_run(
    run: Path,
    recipe: Recipe,
    iteration: int | None,
    host: str,
    port: int,
    timeout: float,
    console: Console,
) -> None:
    """Answer chat requests. The model's name is that of the run's folder; `DRO_RL_TOKEN` in the
    environment is asked of every request to /v1.

    Args:
        recipe: the run's; with `cluster.mode: local` nothing of Ray is started.
        iteration: of the checkpoint; by default the last.
        timeout: for one request [s].
    Raises:
        UserError: the run has no generator or no such checkpoint, a policy or the index cannot be
            opened, both engines do not fit one GPU, the address is taken, or the cluster runs Ray
            Serve already.
    """
    if recipe.generator.is_none:
        raise UserError(
            f"{run}: has no generator (generator: none), so nobody answers: `dro-rl answer` shows "
            "what its selector picks, and `dro-rl export` gives the selector to other programs"
        )
    _check_both_fit(recipe)
    directory = RunDirectory.open(run)
    at, models = policies_of(directory, recipe, iteration)
    name, token = directory.path.name, bearer_token()
    service = Service(_from_anywhere(recipe), models, name, host, port, timeout, token)
    console.say(f"{name}, iteration {at}: loading (engines take up to a minute)")
    told = f"model {name} at {{address}}/v1; also /health and /metrics; Ctrl-C ends it"
    if recipe.cluster.mode == "local":
        _serve_here(service, told, console)
    else:
        from dro_rl.chat.on_ray import serve_on_ray

        serve_on_ray(service, told, console)


def _serve_here(service: Service, told: str, console: Console) -> None:
    from dro_rl.chat.app import make_app

    listening = listen(service.host, service.port)
    answering = Answering(service)
    app = make_app(
        service.name, answering.one, service.token, service.timeout, lambda: answering.fault
    )
    address = address_of(service.host, listening.getsockname()[1])
    console.say(told.replace("{address}", address))
    warn_if_open(service.host, service.token, console.say)
    answer_until_a_signal(app, listening, _CONNECTIONS)


def _check_both_fit(recipe: Recipe) -> None:
    """In training each engine has a GPU, or half of one; here both are in one process."""
    share = 2 * recipe.rollout.gpu_memory_utilization
    two = recipe.rollout.engine == "vllm" and not isinstance(recipe.selector, EncoderSelector)
    if two and share > _LARGEST_SHARE and has_gpu():
        raise UserError(
            f"rollout.gpu_memory_utilization: {recipe.rollout.gpu_memory_utilization:g} is what "
            "each of the two engines takes of every GPU that serves both: add "
            "rollout.gpu_memory_utilization=0.4 to the command"
        )


def _from_anywhere(recipe: Recipe) -> Recipe:
    """A replica has a working folder of its own."""
    changed = {}
    for name in ("retrieval", "selector"):
        section = getattr(recipe, name)
        if isinstance(section, CorpusSection | EncoderSelector):
            cache = str(located(section.cache_dir).absolute())
            changed[name] = section.model_copy(update={"cache_dir": cache})
    return recipe.model_copy(update=changed)
