"""What docs/security.md promises of files, servers and services, each by what would break it."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi.testclient import TestClient
from fuzz_targets import HOSTILE_YAML
from made_runs import make_run, question
from servers import serving, speaking

from dro_rl import remote
from dro_rl.cli_services import serve_retriever, serve_reward
from dro_rl.cli_trained import serve as serve_chat
from dro_rl.errors import UserError
from dro_rl.listening import listen
from dro_rl.policy.causal_lm import check_context, load_model, load_tokenizer
from dro_rl.recipe_file import load_recipe, localise
from dro_rl.redaction import without_secrets
from dro_rl.remote import is_loopback, post_json
from dro_rl.retrieval.model_files import local_model
from dro_rl.retrieval.passages import open_dataset
from dro_rl.reward import Reward, load_reward, server
from dro_rl.reward.server import make_app
from dro_rl.sections.policy import PolicySection
from dro_rl.tracking.report import write_report
from tests.models import make_llama

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


def write_recipe(folder: Path, **sections: object) -> Path:
    settings = {
        "data": {"kind": "facts"},
        "retrieval": {"kind": "given", "candidates": 3},
        "selector": {"model": "m", "documents": 2},
        "generator": {"model": "m"},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(settings))
    return path


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


def test_a_rewards_code_is_never_fetched(tmp_path):
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


# --- servers that are asked -----------------------------------------------------------------------

TOKEN = "planted-0123456789abcdef"


@pytest.fixture
def token(monkeypatch) -> str:
    monkeypatch.setenv("DRO_RL_TOKEN", TOKEN)
    return TOKEN


def ask(url: str, **options) -> object:
    return post_json(f"{url}/score", {}, setting="reward", attempts=1, **options)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_and_neither_followed_nor_given_the_token(token, status):
    heard = []

    def other(body, headers):
        heard.append(headers)
        return 200, b"1"

    with serving(other) as elsewhere:
        reply = (
            f"HTTP/1.1 {status} Moved\r\nLocation: {elsewhere}/score\r\nContent-Length: 0\r\n\r\n"
        )
        with (
            speaking(lambda caller: caller.sendall(reply.encode())) as address,
            pytest.raises(
                UserError, match=f"answered {status} and sends us to '{elsewhere}/score'"
            ),
        ):
            ask(address)
    assert heard == []


def test_a_redirect_to_a_file_is_refused():
    reply = b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"
    with (
        speaking(lambda caller: caller.sendall(reply)) as address,
        pytest.raises(UserError, match="sends us to 'file:///etc/passwd'"),
    ):
        ask(address)


def drip(first: bytes, then: bytes) -> Callable[[socket.socket], None]:
    def say(caller: socket.socket) -> None:
        caller.sendall(first)
        for _ in range(200):
            caller.sendall(then)
            time.sleep(0.05)

    return say


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X: x\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["silence", "header", "headers", "body", "chunks"],
)
def test_a_reply_that_drips_is_given_up_in_time(first, then):
    start = time.monotonic()
    with (
        speaking(drip(first, then)) as address,
        pytest.raises(UserError, match="no reply within 0.3 s"),
    ):
        ask(address, timeout=0.3)
    assert time.monotonic() - start < 3


def test_a_reply_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(remote, "_LARGEST_REPLY", 2**20)

    def say(caller: socket.socket) -> None:
        caller.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            caller.sendall(b" " * 2**16)

    with speaking(say) as address, pytest.raises(UserError, match="sends more than 1 MiB"):
        ask(address)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_compressed_data_is_neither_asked_for_nor_unpacked(coding):
    asked = []

    def say(caller: socket.socket) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: 9\r\n\r\n"
        caller.sendall(head.encode() + b"no matter")

    def hear(body, headers):
        asked.append(headers)
        return 200, b"1"

    with speaking(say) as address, pytest.raises(UserError, match="sends compressed data"):
        ask(address)
    with serving(hear) as address:
        ask(address)
    assert asked[0]["Accept-Encoding"] == "identity"


def test_what_is_no_json_is_told_by_its_beginning():
    reply = (
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n\x89PNG\r\n\x1a\nx"
    )
    with (
        speaking(lambda caller: caller.sendall(reply)) as address,
        pytest.raises(UserError, match="its reply is not JSON: .PNG"),
    ):
        ask(address)


@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_server_that_repeats_the_token_is_not_repeated(monkeypatch, status):
    monkeypatch.setenv("MY", "short")  # neither its name nor its length says that it is secret

    def answer(body, headers):
        return status, f"bad {headers['Authorization']}".encode()

    with serving(answer) as address, pytest.raises(UserError, match=r"bad Bearer \*\*\*") as told:
        ask(address, token_variable="MY")
    assert "short" not in str(told.value)


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{TOKEN}@host/score",
        f"http://{TOKEN}@host/score",
        f"https://user:{TOKEN}/two@host/score",
        f"https://user:{TOKEN} two@host/score",
        f"http://host/score?api_key={TOKEN}",
        f"https://host/score?a=1&X-Amz-Signature={TOKEN}",
        f"http://host/score#access_token={TOKEN}",
    ],
)
@pytest.mark.parametrize("key", ["reward", "retrieval"])
def test_a_url_with_a_secret_is_refused_and_not_shown(tmp_path, url, key):
    for told in (_refused(tmp_path, key, url), _overridden(tmp_path, key, url)):
        assert TOKEN not in told
        assert "DRO_RL_TOKEN" in told


def _refused(folder: Path, key: str, url: str) -> str:
    value = url if key == "reward" else {"kind": "http", "url": url}
    with pytest.raises(UserError) as told:
        load_recipe(str(write_recipe(folder, **{key: value})))
    return str(told.value)


def _overridden(folder: Path, key: str, url: str) -> str:
    value = f"'{url}'" if key == "reward" else f"{{kind: http, url: '{url}'}}"
    with pytest.raises(UserError) as told:
        load_recipe(str(write_recipe(folder)), [f"{key}={value}"])
    return str(told.value)


def test_a_url_with_other_parameters_is_fine(tmp_path):
    load_recipe(str(write_recipe(tmp_path, reward="http://host/score?model=a&keyword=b")))


@pytest.mark.parametrize("variable", ["sk-live-0123456789", "hf_AbCdEf0123456789"])
def test_a_key_where_its_variables_name_should_be_is_refused_and_not_shown(tmp_path, variable):
    reward = {"use": "rewards/utility_judge.py", "url": "http://h/v1", "model": "m"}
    recipe = load_recipe(str(write_recipe(tmp_path, reward={**reward, "key": variable})))
    with pytest.raises(UserError, match="name of the environment variable") as told:
        load_reward(recipe.reward)
    assert variable not in str(told.value)


def test_a_recipe_that_holds_a_secret_of_the_environment_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    reward = {"use": "rewards/f1.py", "password": TOKEN}
    with pytest.raises(UserError, match="reward: holds the secret that is in HF_TOKEN") as told:
        load_recipe(str(write_recipe(tmp_path, reward=reward)))
    assert TOKEN not in str(told.value)


def test_what_is_no_secret_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    monkeypatch.setenv("TOKENIZER", "dro_wizard")
    monkeypatch.setenv("SHORT_KEY", "facts")
    load_recipe(str(write_recipe(tmp_path, tracking={"run_dir": f"{tmp_path}/dro_wizard"})))
    text = f"{tmp_path}/dro_wizard of facts: http://host/score?model=a&monkey=b"
    assert without_secrets(text) == text


# --- services -------------------------------------------------------------------------------------


def test_services_listen_here_alone_unless_told_otherwise():
    import inspect

    for command in (serve_retriever, serve_reward, serve_chat):
        assert inspect.signature(command).parameters["host"].default == "127.0.0.1"
    assert [is_loopback(h) for h in ("127.0.0.1", "127.1.2.3", "localhost", "::1")] == [True] * 4
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "", "10.0.0.1", "box")] == [False] * 5


class Ones(Reward):
    def score(self, outcomes):
        return [1.0] * len(outcomes)


@pytest.mark.parametrize(
    ("host", "value", "warned"),
    [("0.0.0.0", "", True), ("0.0.0.0", TOKEN, False), ("127.0.0.1", "", False)],
)
def test_a_reward_server_that_anyone_may_ask_says_so(monkeypatch, host, value, warned):
    monkeypatch.setenv("DRO_RL_TOKEN", value)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    said: list[str] = []
    server.serve(Ones(), host, 0, said.append)
    assert any("reached from other machines: set DRO_RL_TOKEN" in s for s in said) == warned
    assert TOKEN not in "".join(said)


def test_the_token_is_the_same_with_white_space_around_it(monkeypatch):
    """A client sends it without, so a server that kept it would refuse its own."""
    monkeypatch.setenv("DRO_RL_TOKEN", f" {TOKEN}\n")
    apps = []
    monkeypatch.setattr(server, "make_app", lambda reward, token: apps.append(token))
    monkeypatch.setattr(uvicorn, "Config", lambda app, **_: None)
    monkeypatch.setattr(
        uvicorn,
        "Server",
        lambda config: type("S", (), {"run": lambda self, sockets: sockets[0].close()})(),
    )
    server.serve(Ones(), "127.0.0.1", 0, lambda text: None)
    assert apps == [TOKEN]


def test_a_body_that_drips_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(server, "_SLOWEST_BODY", 0.3)
    listening = listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(make_app(Ones()), log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        with socket.create_connection(listening.getsockname(), timeout=10) as caller:
            caller.sendall(b"POST /score HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{")
            assert b"408" in caller.recv(200).split(b"\r\n")[0]
    finally:
        running.should_exit = True
        thread.join(10)


class Broken(Reward):
    def score(self, outcomes):
        raise LookupError("too picky")


def test_a_caller_is_never_sent_a_traceback():
    body = {
        "questions": [
            {"id": "q", "question": "?", "answers": ["a"], "selections": [{"documents": []}]}
        ]
    }
    replies = [TestClient(make_app(Broken())).post("/score", json=body)]
    replies += [
        TestClient(make_app(Ones())).post("/score", content=content)
        for content in (b"", b"{", b"[" * 5000, b'{"questions": ["\\ud800"]}', b"\xff")
    ]
    assert [reply.status_code for reply in replies] == [500, 422, 422, 422, 422, 422]
    for reply in replies:
        assert "Traceback" not in reply.text and ".py" not in reply.text


def test_a_search_that_fails_tells_the_caller_nothing_of_it(capfd):
    import asyncio

    from fastapi import HTTPException

    from dro_rl.retriever_server import RetrieverService

    class Request:
        @property
        def headers(self):
            raise KeyError("/secret/place")

    metric = type("M", (), {"labels": lambda s, *_: s, "inc": lambda s: 0, "observe": lambda *_: 0})
    service = SimpleNamespace(
        timeout=1, token="t", requests=metric(), seconds=metric(), _found=None
    )
    with pytest.raises(HTTPException) as told:
        asyncio.run(RetrieverService.func_or_class.search(service, Request()))
    assert (told.value.status_code, "/secret" in told.value.detail) == (500, False)
    assert "/secret/place" in capfd.readouterr().err


# --- reports --------------------------------------------------------------------------------------

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> ]]> &lt; {{data}}"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, len(attrs)))


def _tags(page: str) -> list[tuple[str, int]]:
    parser = _Tags()
    parser.feed(page)
    return parser.found


def test_no_text_from_data_becomes_part_of_a_report(tmp_path):
    pages = []
    for name, text in (("plain", "Where was it?"), ("hostile", HOSTILE)):
        run = make_run(tmp_path / name, [question(1, text)])
        evaluation = run.path / "evaluation" / "iteration-0000.jsonl"
        rows = [json.loads(line) | {"answer": text} for line in evaluation.open()]
        evaluation.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = run.path / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("model: m", f"model: {json.dumps(text)}"))
        write_report([run], tmp_path / "report.html")
        pages.append((tmp_path / "report.html").read_text())
    assert _tags(pages[0]) == _tags(pages[1])
    assert "alert(1)" in pages[1]  # it is there, as text
