"""Libraries that cannot live beside transformers 5 run in a Python environment of their own.

The work is done by a Ray actor whose process is started with that environment's Python
(`py_executable`), on this process's node.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dro_rl.errors import UserError
from dro_rl.jsonlines import located

_CHECKOUT = Path(__file__).resolve().parents[2]


class Elsewhere:
    """The `Worker` of a module, in a process of another environment, started when it is needed."""

    def __init__(
        self,
        kind: str,
        environment: str,
        libraries: Sequence[str],
        module: ModuleType,
        arguments: Callable[[], tuple[Any, ...]],
    ) -> None:
        """
        Args:
            kind: the retriever's; `make KIND-env` makes its environment.
            environment: its Python.
            libraries: distributions that have to be there.
            module: it travels there by value, so it imports nothing of this project.
            arguments: gives what `module.Worker` is made with.
        Raises:
            UserError: there is no such environment, or it does not fit; says how to make it.
        """
        self.kind, self.module, self.arguments = kind, module, arguments
        self.python = find_python(kind, environment)
        self.versions = _versions(kind, self.python, libraries)
        self._started_ray = False
        self._worker: Any = None

    def call(self, method: str, *args: Any) -> Any:
        """What the worker's method returns.

        Raises:
            RayTaskError: the method raised; its `cause` is what.
            UserError: the process ended.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        if self._worker is None:
            self._worker = self._start()
        try:
            return ray.get(getattr(self._worker, method).remote(*args))
        except RayTaskError:
            raise
        except RayError as error:
            raise UserError(
                f"retrieval.kind: {self.kind}: its process with {self.python} ended in {method}: "
                f"{error}"
            ) from error

    def close(self) -> None:
        """End the process; the next call starts another."""
        import ray

        if self._worker is not None:
            if ray.is_initialized():  # else it has ended with the Ray that another retriever began
                ray.kill(self._worker)
            self._worker = None
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False

    def _start(self) -> Any:
        import ray
        from ray import cloudpickle
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        arguments = self.arguments()
        if not ray.is_initialized():
            _start_ray()
            self._started_ray = True
        cloudpickle.register_pickle_by_value(self.module)
        path = f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # ninja is there
        here = ray.get_runtime_context().get_node_id()  # where index and environment are
        worker = ray.remote(self.module.Worker).options(
            num_cpus=0,
            runtime_env={"py_executable": str(self.python), "env_vars": {"PATH": path}},
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        return worker.remote(*arguments)


def find_python(kind: str, name: str) -> Path:
    """The Python of an environment: of the working folder, or of the checkout.

    Raises:
        UserError: there is none; says how to make it.
    """
    path = located(name)
    for place in (path, _CHECKOUT / path):
        if os.path.isfile(place):
            return place.absolute()  # not resolved: the link is what makes it the environment's
    raise UserError(
        f"retrieval.kind: {kind} runs in a Python environment of its own, and there is none at "
        f"{name}: make it with `make {kind}-env`, or set retrieval.environment to its Python"
    )


def _versions(kind: str, python: Path, libraries: Sequence[str]) -> dict[str, str]:
    """Versions in that environment; without this check Ray would wait for its process for ever.

    Raises:
        UserError: something is missing there, or Ray or Python are others than here.
    """
    import ray

    names = ["ray", *libraries]
    remake = f"make it again with `make {kind}-env` (retrieval.environment)"
    code = (
        "import json, platform, sys; from importlib.metadata import version; "
        "print(json.dumps({n: version(n) for n in sys.argv[1:]} | "
        "{'python': platform.python_version()}))"
    )
    try:
        done = subprocess.run(
            [python, "-I", "-c", code, *names], capture_output=True, text=True, timeout=60
        )
        versions = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{python} does not work as a Python: {error}; {remake}") from error
    if versions is None:
        told = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{python} lacks something of {', '.join(names)}: {told}; {remake}")
    for name, ours in (("ray", ray.__version__), ("python", platform.python_version())):
        if versions[name] != ours:
            raise UserError(f"{python} has {name} {versions[name]}, here is {ours}; {remake}")
    return versions


def _start_ray() -> None:
    import ray

    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):  # a job has to take its cluster
        ray.init(**quiet)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # no token file in the home folder
    ray.init(address="local", include_dashboard=False, object_store_memory=200_000_000, **quiet)
