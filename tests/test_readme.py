"""What the README tells a newcomer to do works."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_first_two_commands_are_train_and_test():
    assert commands()[:2] == ["make train", "make test"]


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("make ")])
def test_make_knows_the_target(command):
    dry = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert dry.returncode == 0, dry.stderr
    assert "python" in dry.stdout


def test_make_installs_once(tmp_path):
    """With the stamp newer than what it depends on, nothing is installed; without it, everything is."""
    stamp = tmp_path / "venv" / "installed"
    dry = ["make", "-n", "test", f"VENV={stamp.parent}"]
    before = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip install" in before
    assert "constraints.txt" in before
    stamp.parent.mkdir()
    stamp.touch()
    after = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip install" not in after
    assert "pytest" in after


def test_constraints_pin_versions_and_name_no_index():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert lines
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!]+", line) for line in lines)


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert len(targets) > 20
    assert [target for target in targets if "://" not in target and not (ROOT / target).is_file()] == []


def test_train_py_commands_run(tmp_path, monkeypatch, capsys):
    import train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.report.plots.DPI", 40)
    lines = [line for line in commands() if "train.py" in line]
    assert lines
    for line in lines:
        arguments = line.split("train.py", 1)[1].split()
        assert train.main([*arguments, "--budget", "1epochs", "--seeds", "1"]) == 0, capsys.readouterr().err


def test_python_blocks_run():
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["sampler"].summary()["seen"] == 1000  # type: ignore[attr-defined]
