"""What docs/security.md promises of files, each by what would break it."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dro_rl import remote
from dro_rl.errors import UserError
from dro_rl.policy.causal_lm import check_context, load_model, load_tokenizer
from dro_rl.recipe_file import load_recipe, localise
from dro_rl.retrieval.model_files import local_model
from dro_rl.retrieval.passages import open_dataset
from dro_rl.reward import load_reward
from dro_rl.sections.policy import PolicySection
from dro_rl.tracking.report import write_report
from tests.hostile_yaml import HOSTILE_YAML
from tests.made_runs import make_run, question
from tests.models import make_llama
from tests.servers import serving
from tests.written_recipes import write_recipe

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_every_test_that_the_docs_name_is_there():
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text())
    there = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 25
    assert [name for name in named if f"def {name}(" not in there] == []


# --- no pickle, no code ---------------------------------------------------------------------------


def _said(call: ast.Call, **wanted: object) -> bool:
    """Whether the call says all of these."""
    said = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    return all(said.get(name, "nothing") == value for name, value in wanted.items())


CALLS: dict[str, Callable[[ast.Call], bool]] = {
    # by the end of the dotted name: what such a call must be like
    "torch.load": lambda call: _said(call, weights_only=True),
    "np.load": lambda call: _said(call, allow_pickle=False),
    "BM25.load": lambda call: _said(call, allow_pickle=False),
    "AutoTokenizer.from_pretrained": lambda call: _said(call, trust_remote_code=False),
    "AutoConfig.from_pretrained": lambda call: _said(call, trust_remote_code=False),
    "AutoModelForCausalLM.from_config": lambda call: _said(call, trust_remote_code=False),
    "AutoModelForCausalLM.from_pretrained": lambda call: _said(
        call, trust_remote_code=False, use_safetensors=True
    ),
    "SentenceTransformer": lambda call: _said(call, trust_remote_code=False),
    "LLM": lambda call: _said(call, trust_remote_code=False, load_format="safetensors"),
    **{f"yaml.{name}": lambda call: False for name in ("load", "load_all", "unsafe_load")},
    **{f"yaml.{name}": lambda call: False for name in ("full_load", "Loader", "UnsafeLoader")},
    **{f"os.{name}": lambda call: False for name in ("system", "popen")},
    **{name: lambda call: False for name in ("eval", "exec", "compile", "__import__")},
}
MODULES = ("pickle", "_pickle", "cPickle", "shelve", "marshal", "dill", "joblib", "cloudpickle")
MODULES += ("urllib.request", "http.client", "requests", "aiohttp", "ftplib", "telnetlib")
ALLOWED = {
    # file, name: why
    ("dro_rl/retrieval/environments.py", "ray.cloudpickle"): "our own class to our own process",
    ("dro_rl/retrieval/colbert_worker.py", "RAGPretrainedModel.from_pretrained"): "the other "
    "environment's; the folder is the copy that was checked",
    ("dro_rl/reward/loading.py", "importlib.import_module"): "the reward that the recipe names",
    ("dro_rl/reward/loading.py", "exec_module"): "the reward that the recipe names",
}


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}".removeprefix(".")
    return node.id if isinstance(node, ast.Name) else ""


def _problems(path: Path) -> list[str]:
    name, found = str(path.relative_to(ROOT)), []
    for node in ast.walk(ast.parse(path.read_text())):
        said = ""
        if isinstance(node, ast.Import):
            said = next((a.name for a in node.names if a.name in MODULES), "")
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            said = next((n for n in names if n in MODULES or n.endswith("cloudpickle")), "")
        elif isinstance(node, ast.Call):
            called = _dotted(node.func)
            rule = next((r for r in CALLS if called == r or called.endswith(f".{r}")), None)
            if rule in ("eval", "compile") and called != rule:
                rule = None  # model.eval(), re.compile()
            if rule and not CALLS[rule](node):
                said = called
            last = called.rpartition(".")[2]
            if last in ("from_pretrained", "import_module", "exec_module") and not rule:
                said = said or called if not _said(node, trust_remote_code=False) else ""
            if any(k.arg == "shell" for k in node.keywords):
                said = f"{called}(shell=...)"
        short = next((s for f, s in ALLOWED if f == name and said.endswith(s)), None)
        if said and short is None:
            found.append(f"{name}, line {node.lineno}: {said}")
    return found


def test_nothing_in_the_package_reads_pickles_runs_code_or_loads_models_trustingly():
    files = [*(ROOT / "dro_rl").rglob("*.py"), *(ROOT / "rewards").glob("*.py")]
    assert len(files) > 100
    assert [problem for path in files for problem in _problems(path)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from ray import cloudpickle",
        "import torch\ntorch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "bm25s.BM25.load(p)",
        "AutoTokenizer.from_pretrained(p)",
        "transformers.AutoModelForCausalLM.from_pretrained(p, trust_remote_code=False)",
        "type(c).from_pretrained(p)",
        "LLM(p, trust_remote_code=False)",
        "yaml.load(t)",
        "eval(x)",
        "importlib.import_module(x)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_that_test_would_find_them(monkeypatch, tmp_path, code):
    (tmp_path / "new.py").write_text(code)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert len(_problems(tmp_path / "new.py")) == 1


@pytest.fixture
def section(tmp_path) -> PolicySection:
    make_llama(tmp_path / "model", hidden=32, layers=1, context=64)
    return PolicySection(model=str(tmp_path / "model"), max_length=64, max_new_tokens=8)


def test_a_model_whose_weights_are_a_pickle_is_refused_unread(section, tmp_path):
    folder = Path(section.model)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    told = r"weights are a pickle \(pytorch_model.bin\).*safetensors.*save_pretrained"
    for load in (load_tokenizer, local_model, lambda name: check_context(section, name)):
        with pytest.raises(UserError, match=told):
            load(section.model)
    with pytest.raises(UserError, match=told):
        load_model(section, section.model, training=False)
    assert not (tmp_path / "ran").exists()


def test_a_module_of_a_dense_model_whose_weights_are_a_pickle_is_refused(section):
    (Path(section.model) / "2_Dense").mkdir()
    (Path(section.model) / "2_Dense" / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="retrieval.model: .*pickle"):
        local_model(section.model)


def test_a_models_own_code_is_not_run_and_nobody_is_asked(section, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    folder = Path(section.model)
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    config |= {"model_type": "own", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for load in (load_tokenizer, lambda name: check_context(section, name)):
        with pytest.raises(UserError, match="could not be loaded"):
            load(section.model)
    with pytest.raises(UserError, match="could not be loaded"):
        load_model(section, section.model, training=False)
    assert not (tmp_path / "ran").exists()


def test_weights_that_lack_some_are_not_made_up(section):
    from safetensors.torch import load_file, save_file

    path = Path(section.model) / "model.safetensors"
    weights = load_file(path)
    del weights["model.norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="its weights lack model.norm.weight"):
        load_model(section, section.model, training=False)


def test_a_data_sets_script_is_not_run(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    with pytest.raises(UserError, match="corpus_path: cannot load"):
        open_dataset(str(tmp_path / "set"), None, "train")
    assert not (tmp_path / "ran").exists()


REWARD = """
import os
from dro_rl.reward import Reward
os.mkdir({ran!r})
class Mine(Reward):
    def score(self, outcomes):
        return [1.0] * len(outcomes)
"""


def test_a_rewards_code_runs_when_it_is_loaded_by_name_and_not_before(tmp_path):
    ran, named = tmp_path / "ran", tmp_path / "mine.py"
    for path in (named, tmp_path / "other.py"):
        path.write_text(REWARD.format(ran=str(ran)))
    recipe = localise(load_recipe(str(write_recipe(tmp_path, reward=str(named)))))
    run = make_run(tmp_path / "run", [question(1)])
    (run.path / "recipe.yaml").write_text(json.dumps(recipe.resolved()))
    write_report([run], tmp_path / "report.html")
    assert not ran.exists()
    load_reward(recipe.reward)
    assert ran.exists()  # made once: with the other file's there would have been an error


def test_a_rewards_code_is_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda s: None)  # before it is asked again
    code = REWARD.format(ran=str(tmp_path / "ran")).encode()
    with serving(lambda body, headers: (200, code)) as address, pytest.raises(UserError):
        load_reward(f"{address}/mine.py")
    for url in (f"file://{tmp_path}/mine.py", "ftp://host/mine.py"):
        with pytest.raises(UserError, match="must begin with http"):
            load_recipe(str(write_recipe(tmp_path, reward=url)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", HOSTILE_YAML, ids=range(len(HOSTILE_YAML)))
def test_hostile_yaml_is_refused_at_once(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(UserError) as told:
        load_recipe(str(tmp_path / "recipe.yaml"))
    assert time.process_time() - start < 5
    assert len(str(told.value)) < 10_000


def test_aliases_that_stand_for_little_are_fine(tmp_path):
    path = write_recipe(tmp_path)
    text = path.read_text().replace('{"kind": "facts"}', "{kind: facts}")
    path.write_text(text + "\n# one model twice\n")
    twice = "selector: &p {model: m, documents: 2}\ngenerator: {<<: *p}\n"
    with pytest.raises(UserError, match="generator.documents"):  # it got that far
        (tmp_path / "two.yaml").write_text(f"extends: recipe.yaml\n{twice}")
        load_recipe(str(tmp_path / "two.yaml"))
