"""What docker/ says, against itself, the lock files, the command line and Ray's schema. There is no
container engine here: images are not built."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = {"Dockerfile": "gpu.txt", "Dockerfile.cpu": "cpu.txt"}
IMAGES = {"dro-rl:gpu": "Dockerfile", "dro-rl:cpu": "Dockerfile.cpu"}
COMMANDS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])

pytestmark = pytest.mark.unit


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, comments dropped and continued lines joined."""
    lines = [x for x in (DOCKER / name).read_text().splitlines() if not x.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(x.split(maxsplit=1)) for x in joined.splitlines() if x.strip()]  # type: ignore


def arguments(name: str, instruction: str) -> list[str]:
    return [a for i, a in instructions(name) if i == instruction]


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / name).read_text()))


def locked(lock: str, package: str) -> str:
    """The version of a package in a lock file."""
    text = (ROOT / "requirements" / lock).read_text()
    found = re.search(rf"^{re.escape(package)}==([\w.+]+)", text, re.M)
    assert found
    return found[1]


def folders(name: str) -> set[str]:
    """What a Dockerfile makes for its user."""
    made = re.findall(r"mkdir -p ((?:/\S+ )+)", " ".join(arguments(name, "RUN")))
    return {folder for some in made for folder in some.split()}


# --- the Dockerfiles ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "lock"), DOCKERFILES.items())
def test_an_image_installs_the_lock_file_of_its_device_and_nothing_else(name, lock):
    steps = " ".join(arguments(name, "RUN"))
    installs = re.findall(r"pip install (.*?)(?:&&|$|(?=pip install))", steps)
    assert installs and all("--no-deps" in i and "--no-cache-dir" in i for i in installs)
    required = {Path(r).name for r in re.findall(r"-r (\S+)", steps)}
    assert required == ({lock, "torch-cpu.txt"} if lock == "cpu.txt" else {lock})
    for copied in arguments(name, "COPY"):
        *sources, target = copied.split()
        assert all((ROOT / source).exists() for source in sources)
        if target == "/tmp/requirements/":
            assert {Path(s).name for s in sources} == required


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_starts_the_command_line_as_a_user_who_owns_its_folders(name):
    (entry,) = arguments(name, "ENTRYPOINT")
    assert set(json.loads(entry)) <= COMMANDS
    order = [i for i, _ in instructions(name)]
    assert arguments(name, "USER") == ["1000"] and order.index("USER") > order.index("COPY")
    assert folders(name) == {"/work/runs", "/home/dro/.cache/huggingface"}
    assert arguments(name, "WORKDIR") == ["/work"]


def test_both_images_are_the_same_but_for_their_packages():
    def rest(name: str) -> list[tuple[str, str]]:
        return [x for x in instructions(name) if "pip install" not in x[1] and x[0] != "ENV"]

    gpu, cpu = rest("Dockerfile"), rest("Dockerfile.cpu")
    assert len(gpu) == len(cpu)
    differing = [a for a, b in zip(gpu, cpu, strict=True) if a != b]
    assert [i for i, _ in differing] == ["RUN", "COPY"]  # the compiler, the lock file


# --- several containers ---------------------------------------------------------------------------


def test_compose_joins_two_workers_to_a_head_that_is_there():
    (compose,) = read("compose.yaml")
    head, worker = compose["services"]["head"], compose["services"]["worker"]
    assert (DOCKER / head["build"]["context"] / head["build"]["dockerfile"]).is_file()
    assert head["image"] == worker["image"] in IMAGES
    assert IMAGES[head["image"]] == Path(head["build"]["dockerfile"]).name
    assert worker["deploy"]["replicas"] == 2
    assert worker["depends_on"] == {"head": {"condition": "service_healthy"}}
    port = next(a for a in head["command"] if a.startswith("--port="))
    assert f"--address=head:{port.removeprefix('--port=')}" in worker["command"]


def test_compose_shares_runs_and_shows_the_dashboard_to_its_host_alone():
    (compose,) = read("compose.yaml")
    mounts = {s: sorted(v["volumes"]) for s, v in compose["services"].items()}
    assert mounts["head"] == mounts["worker"]
    names = {m.split(":")[0]: m.split(":")[1] for m in mounts["head"]}
    assert names.keys() == compose["volumes"].keys()
    assert set(names.values()) == folders("Dockerfile.cpu")
    published = [p for s in compose["services"].values() for p in s.get("ports", [])]
    assert published and all(p.startswith("127.0.0.1:") for p in published)


def test_compose_calls_ray_as_ray_wants_to_be_called():
    from ray.scripts.scripts import cli

    (compose,) = read("compose.yaml")
    head, worker = (compose["services"][s] for s in ("head", "worker"))
    checks = head["healthcheck"]["test"]
    assert checks[:2] == ["CMD", "ray"]
    for words in (head["command"], worker["command"], checks[2:]):
        name, *options = words
        offered = {o for p in cli.commands[name].params for o in p.opts}
        assert {o.split("=")[0] for o in options if o.startswith("--")} <= offered


def test_rays_launcher_takes_its_file():
    import jsonschema
    import ray

    (cluster,) = read("ray-cluster.yaml")
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(cluster, json.loads(schema.read_text()))
    assert cluster["docker"]["image"] in IMAGES
    options = " ".join(cluster["docker"]["run_options"])
    assert "--entrypoint= " in options  # the image's is dro-rl, the launcher's is a shell
    mounted = {m.split(":")[1] for m in re.findall(r"--volume (\S+)", options)}
    assert mounted == folders("Dockerfile")


def test_the_job_for_kubernetes_runs_a_recipe_that_is_there():
    job, claim = read("rayjob.yaml")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == locked("gpu.txt", "ray")
    for program, _, recipe in commands_of(job):
        assert program in COMMANDS and (ROOT / "recipes" / recipe).is_file()
    pods = pod_specs(job)
    assert len(pods) == 2
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] in IMAGES
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        assert mounts.keys() == {*folders("Dockerfile"), "/dev/shm"}
        assert set(mounts.values()) == {v["name"] for v in pod["volumes"]}
        claimed = {
            v["persistentVolumeClaim"]["claimName"]
            for v in pod["volumes"]
            if len(v) > 1 and "persistentVolumeClaim" in v
        }
        assert claimed == {claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_job_has_the_gpus_that_its_recipe_asks_for():
    job, _ = read("rayjob.yaml")
    gpus = sum(p["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for p in pod_specs(job))
    recipe = commands_of(job)[-1][-1]
    (asked,) = re.findall(r"--gpus (\d+)", (ROOT / "recipes" / recipe).read_text())
    assert gpus == int(asked)


def commands_of(job: dict[str, Any]) -> list[list[str]]:
    """What the cluster runs. KubeRay pastes the entrypoint behind `ray job submit --` into a line
    of bash in the pod that submits: an operator there would end the submission."""
    words = [*shlex.shlex(job["spec"]["entrypoint"], posix=True, punctuation_chars=True)]
    assert not [word for word in words if set(word) <= set("&;|")]
    shell, option, script = words
    assert (shell, option) == ("sh", "-c")
    return [shlex.split(command) for command in script.split("&&")]


def pod_specs(job: dict[str, Any]) -> list[dict[str, Any]]:
    """One a pod: the head's, and each worker's as often as there are replicas."""
    cluster = job["spec"]["rayClusterSpec"]
    workers = [g for g in cluster["workerGroupSpecs"] for _ in range(g["replicas"])]
    return [g["template"]["spec"] for g in (cluster["headGroupSpec"], *workers)]


def test_every_file_is_explained():
    told = set(re.findall(r"`([\w.-]+)`", (DOCKER / "README.md").read_text()))
    assert {p.name for p in DOCKER.iterdir()} - told == {"README.md"}
