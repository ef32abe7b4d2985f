"""What docs/security.md promises of servers that are asked."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dro_rl import remote
from dro_rl.errors import UserError
from dro_rl.recipe_file import load_recipe
from dro_rl.redaction import without_secrets
from dro_rl.remote import post_json
from dro_rl.reward import load_reward
from tests.servers import serving, speaking
from tests.written_recipes import write_recipe

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


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
