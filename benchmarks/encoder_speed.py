"""How long an encoder's selections and passes take, on HotpotQA's questions and one core.

    python benchmarks/encoder_speed.py

all-MiniLM-L6-v2 and 8 questions with their 10 paragraphs, cut to 128 tokens: what 64 selections a
question cost over 8, encoding included, and passes over texts, forward and with backward, by what
learns and in which precision. Prints both.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import in_turns, prepare, table

prepare()

import torch  # noqa: E402

from benchmarks.encoder_arms import QUIET, Setting, make_recipe, write_data  # noqa: E402
from dro_rl.encoder_learner import EncoderLearner  # noqa: E402
from dro_rl.policy.encoder import Encoder  # noqa: E402
from dro_rl.policy.encoder_files import load_encoder  # noqa: E402
from dro_rl.policy.picks import State  # noqa: E402
from dro_rl.questions import load_questions  # noqa: E402
from dro_rl.recipe import Recipe  # noqa: E402
from dro_rl.records import Example  # noqa: E402
from dro_rl.rollout.encoder_worker import EncoderWorker  # noqa: E402
from dro_rl.sections.encoder import EncoderSelector  # noqa: E402

PARTS = {
    "all": {},
    "last 2 of 6 layers": {"train": "last_layers", "layers": 2},
    "last layer": {"train": "last_layers", "layers": 1},
    "lora, rank 16": {"lora": {"rank": 16}},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, setting = Path(name), Setting()
        recipe = make_recipe(write_data(folder, setting), folder / "run", 0, setting)
        questions = load_questions(recipe, QUIET).train[:8]
        time_sampling(recipe, questions)
        time_passes(recipe, questions)


def time_sampling(recipe: Recipe, questions: list[Example]) -> None:
    """Of 8 questions, by the whole encoder: a pass over their texts, and the draws."""
    whole = recipe.selector.model_copy(update={"train": "all", "layers": None})
    recipe = recipe.model_copy(update={"selector": whole})
    worker = EncoderWorker(recipe, "selector", recipe.selector.model)
    weights = EncoderLearner(recipe, "selector", recipe.selector.model, 1, 1e-6).weights()

    def side(samples: int) -> None:
        worker.load_weights(weights, 0)  # which makes it score anew
        worker.select(questions, samples, 0)

    times = in_turns({str(m): lambda m=m: side(m) for m in (8, 64)})
    print(
        f"8 questions: m = 8 {times['8']} s, m = 64 {times['64']} s, "
        f"{100 * (times['64'].over(times['8']) - 1):+.1f} % (median of the turns' ratios)"
    )


def time_passes(recipe: Recipe, questions: list[Example]) -> None:
    """Milliseconds a text; those of `last_layers` begin at hidden states that are kept."""
    states = [State(question) for question in questions]
    rows = []
    for dtype in ("float32", "bfloat16"):
        for name, part in PARTS.items():
            settings = {"train": "all", "layers": None, "dtype": dtype, **part}
            section = EncoderSelector.model_validate(recipe.selector.model_dump() | settings)
            encoder = load_encoder(section, recipe.selector.model)
            texts = len(encoder.texts(states))

            def forward(encoder: Encoder = encoder) -> None:
                with torch.no_grad():
                    encoder.scores(states)

            def backward(encoder: Encoder = encoder) -> None:
                encoder.scores(states).sum().backward()

            times = in_turns({"forward": forward, "backward": backward})
            each = [f"{1000 * times[side].median / texts:.1f}" for side in times]
            rows.append([name, dtype, *each])
    print(table(["learns", "dtype", "forward [ms a text]", "and backward"], rows))


if __name__ == "__main__":
    main()
