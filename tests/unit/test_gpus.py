"""Which processes share which GPU, and whether `dro-rl check` says that they fit."""

import pytest

from dro_rl.errors import UserError
from dro_rl.estimate import footprint, gpus, memory_in_words
from dro_rl.estimate.shape import shape_of
from dro_rl.recipe import POLICIES, Recipe
from dro_rl.recipe_file import load_recipe
from dro_rl.roles import process_count, taken_gpus
from dro_rl.rollout.environment import engine_environment
from tests.commands import ROOT, run_here
from tests.made_recipes import BILLION, recipe_of
from tests.tiny import make_recipe

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def told(recipe: Recipe, number: int, memory: float) -> str:
    return "\n".join(memory_in_words(recipe, (number, memory)))


def test_a_gpu_fits_or_what_to_change_is_said():
    recipe = load_recipe("dro_hotpot_1gpu.yaml")
    assert "DOES NOT FIT" not in told(recipe, 1, 80) and "fits, " in told(recipe, 1, 80)
    small = told(recipe, 1, 8)
    assert "DOES NOT FIT" in small and "lower " in small
    full = told(
        recipe_of(
            selector={"lora": {}, "gradient_checkpointing": True},
            generator={"gradient_checkpointing": True},
        ),
        1,
        24,
    )
    assert "DOES NOT FIT" in full and "train generator.lora, or raise generator.ranks" in full


def test_processes_of_both_policies_are_told_what_to_change():
    recipe = load_recipe("dro_hotpot_1gpu.yaml", ["rollout.gpu_memory_utilization=0.2"])
    text = told(recipe, 1, 8)
    assert "the share of the engine of both policies leaves" in text
    assert "the largest is the learner of both policies: lower " in text
    wide = load_recipe("dro_hotpot_1gpu.yaml", ["rollout.gpu_memory_utilization=0.9"])
    assert "lower rollout.gpu_memory_utilization" in told(wide, 1, 24)
    plain = load_recipe("dro_hotpot_1gpu.yaml", ["selector.gradient_checkpointing=false"])
    assert "gradient_checkpointing" in told(plain, 1, 8)


def test_processes_share_gpus_as_ray_places_them():
    recipe = recipe_of(rollout={"workers": 3})
    processes = list(footprint.processes(recipe, dict.fromkeys(POLICIES, BILLION), "gpu", 80))
    roles = [[f.role for f in group] for group in gpus.groups(processes, 4)]
    assert [len(group) for group in roles] == [2, 2, 2, 1]
    assert roles[0] == ["selector engine"] * 2 and roles[-1] == ["generator learner"]
    assert "3 of them would have nothing to do" in told(recipe, 10, 80)


def test_ranks_have_a_gpu_each_alone_where_there_are_others():
    recipe = recipe_of(selector={"ranks": 2}, generator={"ranks": 2})
    processes = list(footprint.processes(recipe, dict.fromkeys(POLICIES, BILLION), "gpu", 80))
    others = ["selector engine", "generator engine", "reward service"]
    for number, together in ((4, [[o] for o in others] + [[]]), (6, [others[:2], others[2:]])):
        placed = [[f.role for f in group] for group in gpus.groups(processes, number)]
        assert len(placed) == number
        assert [[r for r in g if not r.endswith("learner")] for g in placed][: len(together)] == (
            together
        )
        assert [sum(r.endswith("learner") for r in g) for g in placed].count(1) == 4
    with pytest.raises(UserError, match="4 ranks .* there are 3"):
        gpus.groups(processes, 3)


def test_an_engine_of_several_gpus_has_them_for_itself_and_a_part_of_the_weights_on_each():
    def processes(shards: int) -> list[footprint.Footprint]:
        recipe = recipe_of(rollout={"tensor_parallel": shards, "workers": 2})
        return list(footprint.processes(recipe, dict.fromkeys(POLICIES, BILLION), "gpu", 80))

    whole, parts = processes(1), processes(2)
    assert sum(f.shard for f in parts) == 6 and not any(f.shard for f in whole)
    assert parts[0].parts["weights"] == pytest.approx(whole[0].parts["weights"] / 2)
    placed = [[f.role for f in group] for group in gpus.groups(parts, 8)]
    assert placed[:6] == [["selector engine"]] * 4 + [["generator engine"]] * 2
    assert [len(group) for group in placed[6:]] == [2, 1]
    with pytest.raises(UserError, match="take 6 GPUs for themselves.* there are 6"):
        gpus.groups(parts, 6)
    one_sequence = told(recipe_of(rollout={"tensor_parallel": 2}), 8, 80)
    assert "DOES NOT FIT" not in one_sequence and "2 x selector engine" in one_sequence


def test_a_run_claims_gpus_for_each_engine_of_several_and_shares_out_the_others():
    apart = recipe_of(rollout={"tensor_parallel": 2, "workers": 3})
    assert taken_gpus(apart, learners=True) == taken_gpus(apart, learners=False) == 8
    assert process_count(apart, learners=True) == 3  # the reward service and two learners
    assert process_count(recipe_of(rollout={"workers": 3}), learners=True) == 7
    assert taken_gpus(recipe_of(), learners=True) == 0
    one = load_recipe("dro_hotpot_1gpu.yaml", ["rollout.tensor_parallel=2"])
    assert (process_count(one, learners=True), taken_gpus(one, learners=True)) == (1, 2)


def test_tensor_parallel_is_vllms():
    with pytest.raises(ValueError, match="leave it at 1 with engine: transformers"):
        recipe_of(rollout={"tensor_parallel": 2, "engine": "transformers"})
    plain, divided = (
        engine_environment(recipe_of(rollout={"tensor_parallel": n}).rollout, 1) for n in (1, 2)
    )
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in plain
    assert divided["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_an_engine_without_room_for_one_sequence_is_told_of():
    recipe = recipe_of(
        selector={"model": "someone/Model-8B"}, rollout={"gpu_memory_utilization": 0.2}
    )
    text = told(recipe, 8, 80)
    assert "share of the selector engine leaves" in text and "gpu_memory_utilization" in text


def test_gpus_are_given_with_their_memory(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    assert gpus.given_or_found(None, None) is None
    assert gpus.given_or_found(None, 24.0) == (1, 24.0)
    assert gpus.given_or_found(8, 80.0) == (8, 80.0)
    with pytest.raises(UserError, match="--gpu-memory"):
        gpus.given_or_found(8, None)


def test_gpus_of_this_machine_are_found(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '81920\\n40960\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpus.given_or_found(None, None) == (2, 40.0)
    tool.write_text("#!/bin/sh\necho 'no devices were found'; exit 9\n")
    assert gpus.given_or_found(None, None) is None


# --- the shipped recipes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dro_hotpot", "dro_hotpot_1gpu", "dro_hotpot_2nodes"])
def test_a_recipe_fits_the_hardware_that_it_names(name):
    head = (ROOT / "recipes" / f"{name}.yaml").read_text().partition("\ndata:")[0]
    words = head.replace("\n#", "").split()
    number = int(words[words.index("--gpus") + 1]) if "--gpus" in words else 1
    memory = float(words[words.index("--gpu-memory") + 1].rstrip("`).,;"))
    text = told(load_recipe(f"{name}.yaml"), number, memory)
    assert "DOES NOT FIT" not in text and "needs" not in text, text
    assert "nothing to do" not in text
    assert "not yet run" in " ".join(words)


def test_one_process_holds_what_all_hold_but_computes_for_one_at_a_time(tmp_path):
    recipe = make_recipe(tmp_path)
    shapes = {p: shape for p in POLICIES if (shape := shape_of(recipe.policy(p)))}
    parts = list(footprint.processes(recipe, shapes, "cpu"))
    one = footprint.one_process(parts)
    assert one.parts["weights"] == sum(f.parts["weights"] for f in parts)
    assert max(f.total for f in parts) <= one.total < sum(f.total for f in parts)
    assert "1 x everything" in "\n".join(memory_in_words(recipe, None))


def test_check_shows_it(capsys):
    asked = ("check", "recipes/dro_hotpot.yaml", "--gpus", "8", "--gpu-memory", "80")
    code, out, _ = run_here(capsys, *asked)
    assert code == 0 and "On 8 GPUs of 80 GiB" in out
    assert run_here(capsys, "check", "recipes/demo.yaml")[0] == 0
