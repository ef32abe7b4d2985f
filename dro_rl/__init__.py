"""Direct Retrieval-augmented Optimization (arXiv 2505.03075) as an RL framework.

`from dro_rl import Recipe, train, evaluate, load_pipeline` is the command line in Python
(docs/python.md). Each is imported when it is asked for: importing the package alone takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dro_rl.api import evaluate, train
    from dro_rl.pipeline import load_pipeline
    from dro_rl.recipe import Recipe

__all__ = ["Recipe", "evaluate", "load_pipeline", "train"]


def __getattr__(name: str) -> Any:
    if name == "Recipe":
        from dro_rl.recipe import Recipe as found
    elif name == "load_pipeline":
        from dro_rl.pipeline import load_pipeline as found
    elif name == "train":
        from dro_rl.api import train as found
    elif name == "evaluate":
        from dro_rl.api import evaluate as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
