"""The commands of ``docs/deployment.md`` and of an app's ``NODES.md``, as a stranger would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs the extra flower")

from fedlightning.flower.local_run import environment, free_port, kill_all_of

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
pytestmark = pytest.mark.slow


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def entered(text: str, port: int) -> str:
    """Return a page's commands for one machine: nothing is installed, servers run behind."""
    script, nodes = ["set -e", "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT"], 0
    for block in blocks(text, "bash"):
        for command in (
            re.split(r"(?<!\\)\n(?![^\n]*END$)", block) if "END" not in block else [block]
        ):
            if command.startswith(("pip install", "python3 -m venv")) or not command.strip():
                continue
            command = command.replace("SERVER", "localhost").replace("8000", str(port))
            command = command.replace("DNS:localhost,DNS:localhost", "DNS:localhost")
            if command.startswith("flower-supernode"):
                nodes += 1
                command += f" --host 127.0.0.1 --port {free_port()} > node{nodes}.log 2>&1 &"
            elif command.startswith("flower-superlink"):
                command += " > superlink.log 2>&1 &\n"
                command += f"until curl -ks https://localhost:{port}/health; do sleep 0.2; done"
            script.append(command)
    return "\n".join(script)


def run(script: str, folder: Path, variables: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=variables, capture_output=True, text=True,
        timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


MASKED = "--federation.aggregator=SecureSum --federation.algorithm=FedBABU"


@pytest.mark.parametrize("options", ["", MASKED], ids=["plain", "masked"])
def test_a_stranger_gets_from_the_page_to_a_run_over_tls(tmp_path, options):
    text = PAGE.read_text()
    variables = environment(tmp_path / "unused")
    module, config = blocks(text, "python")[0], blocks(text, "yaml")[0]
    (tmp_path / "hospitals.py").write_text(module)
    (tmp_path / "hospitals.yaml").write_text(config)
    if options:  # the try-outs are run once
        text = re.sub(r"^python -m fedlightning deploy .*--local.*$", "", text, flags=re.MULTILINE)
        text = text.replace("--output app", f"--output app {options}")
    out = run(entered(text, 0), tmp_path, variables)
    assert out.count("all rounds done") == (0 if options else 2)
    page = (tmp_path / "app" / "NODES.md").read_text()
    assert ("peers=" in page) == bool(options)
    try:
        out = run(entered(page, free_port()), tmp_path, variables)
    finally:
        for home in (tmp_path / "unused", tmp_path / "flwr"):
            kill_all_of(home)
    assert "all rounds done" in out, out
    words = [sys.executable, "-m", "fedlightning", "fit", "--config", "hospitals.yaml"]
    words += [*options.split(), "--trainer.default_root_dir=simulated"]
    subprocess.run(words, cwd=tmp_path, env=variables, check=True)
    for name in ("metrics.csv", "clients.csv"):
        deployed, simulated = (
            (tmp_path / root / "lightning_logs" / "version_0" / name).read_text()
            for root in ("run", "simulated")
        )
        assert deployed == simulated
    models = sorted(tmp_path.glob("client-*/personalized/client_*.safetensors"))
    assert [path.parts[-3] for path in models] == ["client-aarau", "client-basel"]
