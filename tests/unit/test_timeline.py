"""What an iteration's seconds, tokens and FLOPs add up to, and how a run shows them."""

import io
import json
import re
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console as RichConsole
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from dro_rl import hardware
from dro_rl.cluster.processes import LocalTeam, open_cluster
from dro_rl.flops import ModelSize, model_size
from dro_rl.hardware import Device, gpu_peak
from dro_rl.records import Rollout, ScoredRollout, Selection, WeightedRollout
from dro_rl.sections.process import ClusterSection
from dro_rl.timeline import Stage, Timeline, figures, sampled_tokens, scored_tokens
from dro_rl.tracking.console import Console
from dro_rl.usage import LearnersUse
from tests.models import make_llama
from tests.tiny import make_example, make_recipe

pytestmark = pytest.mark.unit


# --- arithmetic -----------------------------------------------------------------------------------


def test_figures_of_an_iteration_by_hand():
    stages = {
        "rollout": Stage(seconds=2.0, tokens=300),
        "learn": Stage(seconds=5.0, tokens=1000, flops=4e9),
        "evaluate": Stage(seconds=1.0),
    }
    assert figures(stages, 10.0, peak=2e9) == {
        "time/rollout": 2.0,
        "share/rollout": 0.2,
        "tokens/rollout": 300,
        "tokens_per_second/rollout": 150.0,
        "time/learn": 5.0,
        "share/learn": 0.5,
        "tokens/learn": 1000,
        "tokens_per_second/learn": 200.0,
        "mfu/learn": 0.4,
        "time/evaluate": 1.0,
        "share/evaluate": 0.1,
        "time/other": 2.0,
        "share/other": 0.2,
    }
    assert not any(k.startswith("mfu/") for k in figures(stages, 10.0, peak=None))


def test_a_timeline_goes_on_from_its_state_in_another_process():
    timeline = Timeline()
    timeline.add("rollout", seconds=0.5, tokens=5)
    with timeline.stage("learn"):
        time.sleep(0.05)
        state = json.loads(json.dumps(timeline.state()))
    again = Timeline.resumed(state)
    with again.stage("learn"):
        time.sleep(0.03)
    row = again.figures(None)
    assert again.stages["rollout"] == Stage(0.5, 5)
    assert row["time/learn"] >= 0.08
    assert sum(v for k, v in row.items() if k.startswith("share/")) == pytest.approx(1)
    assert row["time/rollout"] == 0.5


def test_times_of_a_timeline_add_up_to_its_wall_clock():
    start = time.monotonic()
    timeline = Timeline()
    for seconds in (0.02, 0.03):
        with timeline.stage("learn"):
            time.sleep(seconds)
    time.sleep(0.02)
    row = timeline.figures(None)
    assert row["time/learn"] >= 0.05 and row["time/other"] >= 0.02
    total = row["time/learn"] + row["time/other"]
    assert 0.07 <= total <= time.monotonic() - start
    assert row["share/learn"] + row["share/other"] == pytest.approx(1)


def selection(tokens: int, *documents: int) -> Selection:
    return Selection("", tuple(range(tokens)), (-1.0,) * tokens, documents, False)


def rollout(prompt: int, *selections: Selection) -> Rollout:
    return Rollout(make_example(), tuple(range(prompt)), selections, 0)


def test_tokens_count_a_prompt_once_a_question():
    group = rollout(100, selection(4, 0), selection(4, 0), selection(6, 1))
    assert sampled_tokens(group) == 100 + 4 + 4 + 6
    assert scored_tokens(group) == 100 + 4 + 6


# --- model FLOPs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_size_leaves_out_the_embedding_look_up(tmp_path, tied):
    model = make_llama(tmp_path, hidden=32, layers=2, context=256, tied=tied)
    layer = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32  # attention, MLP of twice the width, two norms
    assert model_size(str(tmp_path)) == ModelSize(
        body=2 * layer + 32, head=32 * model.config.vocab_size, layers=2, width=32
    )


def test_training_flops_by_hand():
    size = ModelSize(body=1000, head=200, layers=2, width=8)
    attention = 12 * 2 * 8 * 50 * 100
    assert size.training_flops(100, 10, 50, lora=False) == 6 * (1000 * 100 + 200 * 10) + attention
    assert size.training_flops(100, 10, 50, lora=True) == 4 * (1000 * 100 + 200 * 10) + attention


def test_training_flops_are_those_that_torch_counts(tmp_path):
    make_llama(tmp_path, hidden=64, layers=2, context=256)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = torch.randint(0, model.config.vocab_size, (3, 128))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=16).logits.sum().backward()
    ours = model_size(str(tmp_path)).training_flops(3 * 128, 3 * 16, 128, lora=False)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.03)  # norms; no look-up gradient


class Learners(LocalTeam):
    """Says that its workers are on these devices."""

    def __init__(self, *devices: Device) -> None:
        super().__init__([])
        self.devices = lambda: list(devices)


def weighted(group: Rollout, selector: tuple, generator: tuple) -> WeightedRollout:
    return WeightedRollout(group, selector, generator)


def test_a_steps_flops_count_what_each_policy_learns(tmp_path):
    recipe = make_recipe(tmp_path)
    use = LearnersUse(recipe, {"selector": Learners(), "generator": Learners()})
    group = rollout(100, selection(4, 0), selection(4, 0), selection(6, 1), selection(5, 2))
    w = [weighted(group, (0.5, 0.5, 0.25, 0.0), (0.5, 0.5, 0.0, 0.0))]
    scored = [ScoredRollout(group, (0.0,) * 4, answer_tokens=3)]
    # The selector learns 4 and 6 tokens after a prompt of 100: T = (104 + 106) / 2.
    expected = use.sizes["selector"].training_flops(210, 10, 105, lora=False)
    assert use.flops("selector", 210, scored, w) == expected
    # The generator learns one answer of 3 tokens.
    expected = use.sizes["generator"].training_flops(60, 3, 60, lora=False)
    assert use.flops("generator", 60, scored, w) == expected
    idle = [weighted(group, (0.0,) * 4, (0.0,) * 4)]
    assert use.flops("selector", 0, scored, idle) == use.flops("generator", 0, scored, idle) == 0


def test_a_shared_device_is_counted_once_and_an_unknown_one_leaves_no_peak(tmp_path):
    recipe = make_recipe(tmp_path)
    a, b = Device("a", "H200", 3.0), Device("b", "H200", 3.0)

    def peak(selector: Device, generator: Device) -> float | None:
        return LearnersUse(
            recipe, {"selector": Learners(selector), "generator": Learners(generator)}
        ).peak

    assert peak(a, a) == 3.0
    assert peak(a, b) == 6.0
    assert peak(a, Device("c", "new", None)) is None


# --- hardware -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_of_gpus_by_name(name, peak):
    assert gpu_peak(name) == peak


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures a CPU")
def test_a_cpus_peak_is_measured_once_and_at_once():
    hardware.device.cache_clear()
    start = time.monotonic()
    first = hardware.device()
    assert time.monotonic() - start < 2  # some 30 ms where nothing else runs
    assert first.peak is not None and 1e8 < first.peak < 1e14
    assert hardware.device() is first


def test_memory_is_what_the_process_has_held():
    block = torch.ones(50 * 2**20)  # 200 MiB, not there any more when asked
    del block
    told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert told is not None
    assert hardware.memory().resident == pytest.approx(int(told[1]) / 2**20, rel=0.01)


def test_in_one_process_all_workers_tell_of_the_same():
    class Worker:
        pass

    with open_cluster(ClusterSection(mode="local"), 2) as cluster:
        team = cluster.start("worker", Worker, 2)
        assert {m.process for m in team.memory()} == {hardware.this_process()}
        assert len(team.memory()) == len(team.devices()) == 2
        assert len({d.key for d in team.devices()}) == 1


# --- the table ------------------------------------------------------------------------------------


def test_the_table_sums_the_iterations_longest_stage_first_without_escape_codes():
    stages = {"rollout": Stage(1.0, tokens=3000), "learn": Stage(3.0, tokens=500, flops=3.0)}
    rows = [
        figures(stages, 5.0, peak=10.0) | {"memory/trainer": 0.25},
        figures(stages | {"learn": Stage(1.0, 700, 3.0)}, 3.0, peak=10.0)
        | {"memory/trainer": 0.5, "memory/selector_engine": 1.75, "gpu_memory/trainer": 2.0},
    ]
    file = io.StringIO()
    Console(RichConsole(file=file, width=60, soft_wrap=True)).timeline(rows)
    text = file.getvalue()
    assert "\x1b" not in text and "…" not in text
    assert "Timeline: 2 iterations in 8.0 s" in text
    lines = [line.split() for line in text.splitlines()]
    start = lines.index(["stage", "seconds", "share", "tokens", "tokens/s", "MFU"]) + 2
    assert lines[start : start + 3] == [
        ["learn", "4.0", "50.0", "%", "1,200", "300", "15.0", "%"],
        ["rollout", "2.0", "25.0", "%", "6,000", "3,000", "-"],
        ["other", "2.0", "25.0", "%", "-", "-", "-"],
    ]
    assert "peak memory [GiB]: trainer 0.50, selector engine 1.75" in text
    assert "peak GPU memory [GiB]: trainer 2.00" in text
