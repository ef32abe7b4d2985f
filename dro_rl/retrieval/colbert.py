"""ColBERT (arXiv 2004.12832, 2112.01488) by RAGatouille, in an environment of its own.

RAGatouille's dependencies cannot live beside transformers 5. So the work is done by a Ray actor
whose process is started with that environment's Python (`py_executable`), on this process's node.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dro_rl.errors import UserError
from dro_rl.jsonlines import located
from dro_rl.retrieval import colbert_worker
from dro_rl.retrieval.corpus import Corpus
from dro_rl.retrieval.folders import damaged, digest, made_folder
from dro_rl.retrieval.model_files import local_model, model_identity
from dro_rl.retrieval.retriever import Retriever, Say
from dro_rl.retrieval_sections import Colbert

_LIBRARIES = ("ragatouille", "colbert-ai")
_REMAKE = "make it again with `make colbert-env` (retrieval.environment)"
_FEWEST = 100  # passages; k-means wants more tokens than centroids
_METADATA = "artifact.metadata"
_CHECKOUT = Path(__file__).resolve().parents[2]


class ColbertRetriever(Retriever):
    """One vector a token; a passage's score is the sum over the question's tokens of the largest
    similarity to one of the passage's. Fewer passages than asked for may be found."""

    kind = "colbert"

    def __init__(self, settings: Colbert, cache: Path, say: Say = lambda text: None) -> None:
        super().__init__(cache, say)
        self.settings = settings
        self.python = find_python(settings.environment)
        self.versions = _versions(self.python)
        self._started_ray = False
        self._worker: Any = None

    def makers(self) -> Mapping[str, Any]:
        versions = {name: self.versions[name] for name in _LIBRARIES}
        model = self.checkpoint.name
        return {"model": model, "max_length": self.settings.max_length, **versions}

    def close(self) -> None:
        super().close()
        import ray

        if self._worker is not None:
            ray.kill(self._worker)
            self._worker = None
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False

    @cached_property
    def checkpoint(self) -> Path:
        """A copy of the model, with metadata that say where it lies.

        ColBERT goes by the paths in a checkpoint's `artifact.metadata`, and where they are not
        there takes bert-base-uncased without a word, or asks the hub for it. An index keeps the
        path too, so the copy has to last when the model itself is moved or changed.

        Raises:
            UserError: the model is not a ColBERT checkpoint.
        """
        model = local_model(self.settings.model)
        try:
            metadata = json.loads((model / _METADATA).read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"retrieval.model: {self.settings.model} is no ColBERT checkpoint: it has no "
                f"readable {_METADATA}; scripts/minilm_colbert.py makes one to try"
            ) from error
        makers = {"model": model_identity(model), "place": str(self.cache), "form": "copy"}
        place = str(self.cache / f"checkpoint-{digest(makers)}")

        def copy(folder: Path) -> None:
            # Contents alone: what is read-only there has to be written here.
            shutil.copytree(model, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
            moved = metadata | {"model_name": place, "checkpoint": place}
            (folder / _METADATA).write_text(json.dumps(moved, indent=1))

        return made_folder(self.cache, "checkpoint", makers, copy)

    def _build(self, corpus: Corpus, folder: Path) -> None:
        if len(corpus) < _FEWEST:
            raise UserError(
                f"retrieval.kind: colbert: {len(corpus)} passages are too few to learn the "
                f"centroids of an index from, {_FEWEST} are the least: take retrieval.kind: dense"
            )
        self._call("index", str(corpus.passages), str(folder))

    def _open(self) -> None:
        self._call("open", str(self.folder))

    def _rank(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._call("search", list(questions), k)
        rows = np.full((len(questions), k), -1, dtype=np.int64)
        scores = np.zeros((len(questions), k), dtype=np.float32)
        for i, hits in enumerate(found):
            rows[i, : len(hits)] = [row for row, _ in hits]
            scores[i, : len(hits)] = [score for _, score in hits]
        if rows.size and rows.max() >= len(self.corpus):
            raise damaged(self.folder, f"it names passage {rows.max()} of {len(self.corpus)}")
        return rows, scores

    def _call(self, method: str, *args: Any) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        if self._worker is None:
            self._worker = self._start()
        try:
            return ray.get(getattr(self._worker, method).remote(*args))
        except RayTaskError as error:
            if method == "open":
                raise ValueError(f"RAGatouille cannot open it: {error.cause}") from error
            raise
        except RayError as error:
            raise UserError(
                f"retrieval.kind: colbert: its process with {self.python} ended in {method}: "
                f"{error}"
            ) from error

    def _start(self) -> Any:
        import ray
        from ray import cloudpickle
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not ray.is_initialized():
            _start_ray()
            self._started_ray = True
        cloudpickle.register_pickle_by_value(colbert_worker)
        path = f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # ninja is there
        here = ray.get_runtime_context().get_node_id()  # where index and environment are
        worker = ray.remote(colbert_worker.Worker).options(
            num_cpus=0,
            runtime_env={"py_executable": str(self.python), "env_vars": {"PATH": path}},
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        return worker.remote(str(self.checkpoint), self.settings.max_length)


def find_python(name: str) -> Path:
    """The Python of an environment: of the working folder, or of the checkout.

    Raises:
        UserError: there is none; says how to make it.
    """
    path = located(name)
    for place in (path, _CHECKOUT / path):
        if os.path.isfile(place):
            return place.absolute()  # not resolved: the link is what makes it the environment's
    raise UserError(
        f"retrieval.kind: colbert runs in a Python environment of its own, and there is none at "
        f"{name}: make it with `make colbert-env`, or set retrieval.environment to its Python"
    )


def _versions(python: Path) -> dict[str, str]:
    """Versions in that environment; without this check Ray would wait for its process for ever.

    Raises:
        UserError: something is missing there, or Ray or Python are others than here.
    """
    import ray

    names = ["ray", *_LIBRARIES]
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
        raise UserError(f"{python} does not work as a Python: {error}; {_REMAKE}") from error
    if versions is None:
        told = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{python} lacks something of {', '.join(names)}: {told}; {_REMAKE}")
    for name, ours in (("ray", ray.__version__), ("python", platform.python_version())):
        if versions[name] != ours:
            raise UserError(f"{python} has {name} {versions[name]}, here is {ours}; {_REMAKE}")
    return versions


def _start_ray() -> None:
    import ray

    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):  # a job has to take its cluster
        ray.init(**quiet)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # no token file in the home folder
    ray.init(address="local", include_dashboard=False, object_store_memory=200_000_000, **quiet)
