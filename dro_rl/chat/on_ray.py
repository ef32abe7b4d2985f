"""A trained pair through Ray Serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ray
from fastapi import FastAPI
from ray import serve

from dro_rl import ray_service
from dro_rl.chat.answering import Answering, Service
from dro_rl.chat.app import make_app
from dro_rl.cluster.processes import open_cluster
from dro_rl.errors import UserError
from dro_rl.recipe import Recipe
from dro_rl.tracking.console import Console

if TYPE_CHECKING:  # see dro_rl.chat.wire
    from dro_rl.pipeline import Answer

_AT_ONCE = 32  # requests that are answered together
_IN_PROGRESS = 2 * _AT_ONCE  # so that the next are at hand when these are done
_WAITING = 2 * _IN_PROGRESS  # requests in the queue; a further one is answered 503
_LONGER = 5  # seconds that Ray waits beyond the replica, whose 504 says more than Ray's 408


@serve.deployment(
    max_ongoing_requests=_IN_PROGRESS,
    max_queued_requests=_WAITING,
    logging_config=ray_service.QUIET,
)
@serve.ingress()
class ChatReplica:
    """Both policies and the retriever in one process. What comes together is answered together."""

    def __init__(self, service: Service) -> None:
        self.service, self.answering = service, Answering(service)

    def __serve_build_asgi_app__(self) -> FastAPI:
        service = self.service
        return make_app(service.name, self.ask, service.token, service.timeout, self.fault)

    def fault(self) -> Exception | None:
        """See `Answering.fault`."""
        return self.answering.fault

    def check_health(self) -> None:
        """Ray asks now and then, and starts the replica anew where this keeps failing."""
        if self.answering.fault:
            raise RuntimeError("answering fails") from self.answering.fault

    async def ask(self, question: str) -> Answer | UserError:
        """The answer, found beside those to other questions."""
        return await self.together(question)

    @serve.batch(max_batch_size=_AT_ONCE, batch_wait_timeout_s=0.005)
    async def together(self, questions: list[str]) -> list[Answer | UserError]:
        """The answers of a batch."""
        return await self.answering.each(questions)


def gpus_of_replica(recipe: Recipe, machines: Sequence[int]) -> int:
    """As many as one engine needs: both are on the same.

    Args:
        machines: how many each has.
    Raises:
        UserError: none has as many.
    """
    shards, most = recipe.rollout.tensor_parallel, max(machines, default=0)
    if 0 < most < shards:
        raise UserError(
            f"rollout.tensor_parallel: {shards} GPUs of one machine serve, and none of the "
            f"cluster's has more than {most}: add rollout.tensor_parallel=1 to the command"
        )
    return shards if most else 0


def serve_on_ray(service: Service, told: str, console: Console) -> None:
    """Serve until a signal ends it.

    Args:
        told: said once it answers, with {address} for where.
    Raises:
        UserError: a policy or the index cannot be opened, the address is taken, no machine has as
            many GPUs as an engine needs, or the cluster runs Ray Serve already.
    """
    from dro_rl.pipeline import Pipeline

    ray_service.check_address(service.host, service.port)
    # Here an error is one message; the replica then opens what is known to be there.
    with Pipeline(service.recipe, service.models, console.say) as pipeline:
        pipeline.check()
    ray_service.prepare()
    with open_cluster(service.recipe.cluster, processes=1):
        ray_service.check_nothing_is_served()
        machines = [int(n["Resources"].get("GPU", 0)) for n in ray.nodes() if n["Alive"]]
        gpus = gpus_of_replica(service.recipe, machines)
        replica = ChatReplica.options(ray_actor_options={"num_gpus": gpus})
        app = replica.bind(service)
        limit = service.timeout + _LONGER
        ray_service.serve_until_a_signal(
            app, "chat", service.host, service.port, told, service.token, console.say, limit
        )
