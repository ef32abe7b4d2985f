"""What a call on Ray ended with: a result, the worker's own error, or the worker's loss."""

from __future__ import annotations

from typing import Any

from dro_rl.errors import UserError


class WorkerLost(UserError):
    """A process died or hung whose state is in the last checkpoint alone."""


class Lost(Exception):
    """A worker that did not finish its call; the message says why."""


def result_of(ref: Any, timeout: float) -> Any:
    """The result of a call that has ended.

    Args:
        timeout: for fetching it [s].
    Raises:
        UserError: the worker did, one of that kind; other errors come with its traceback.
        WorkerLost: what the call was given is lost.
        Lost: the worker is.
    """
    import ray
    from ray import exceptions as ray_errors

    lost = (
        ray_errors.RayActorError,
        ray_errors.WorkerCrashedError,
        ray_errors.LocalRayletDiedError,
        ray_errors.NodeDiedError,
        ray_errors.ObjectLostError,
        ray_errors.GetTimeoutError,
        ray_errors.OutOfMemoryError,  # Ray's memory monitor killed it
    )
    try:
        return ray.get(ref, timeout=timeout)
    except ray_errors.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise type(error.cause)(*error.cause.args) from error
        if isinstance(error.cause, ray_errors.ObjectLostError):
            raise WorkerLost(f"an argument is lost ({in_short(str(error.cause))})") from error
        raise
    except lost as error:
        if isinstance(error, ray_errors.OutOfMemoryError):  # and a list of all processes there
            raise Lost(str(error).partition("\n")[0]) from error
        raise Lost(in_short(str(error))) from error


def in_short(message: str) -> str:
    """Of Ray's account of a death, why it died; without identifiers, addresses and guesses."""
    lines = [line for line in message.splitlines() if line and not line.startswith("\t")]
    return " ".join(lines[1:] or lines).partition(" Some common causes include")[0]
