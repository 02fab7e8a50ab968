"""The pages that a reader sees: their blocks of code, and the commands that a shell makes of those in bash.

    for page in PAGES:
        for block in blocks(page):              # Block("docs/start.md", 23, "python", "import keras...")
            ...
    commands(text, folder)                      # [Command(("python", "train.py", "--epochs", "1"), {"TF_CONFIG": ...})]

A block in bash is run by bash, with programs in the place of those it names that do nothing but write down how they
were called. So continued lines, quotes, comments and variables are what the shell takes them for, and a program that is
not among ``PROGRAMS`` is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "benchmarks", "examples", "sampler", "pipeline", "trainer", "tests")
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
    if "_build" not in path.parts
]
PROGRAMS = ("python", "make", "pip", "ray", "ruff", "mypy")
SLURM = {  # of which this machine has none: the hosts of a job, and its tasks one after another
    "scontrol": '[ "$*" = "show hostnames host[0-3]" ] && printf "host%s\\n" 0 1 2 3',
    "srun": 'for SLURM_PROCID in 0 1 2 3; do export SLURM_PROCID; "$@" || exit; done',
}
TOOLS = ("bash", "sed", "paste")  # as they are
TOLD = ("TF_CONFIG", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")  # of the environment


class Block(NamedTuple):
    """A fenced block; its language is all that stands behind the fence, and ``"indented"`` without a fence."""

    page: str
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """A program as it was called: its words, and what of ``TOLD`` was set."""

    words: tuple[str, ...]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join((*(f"{name}={value}" for name, value in self.environment.items()), *self.words))


def blocks(page: str, language: str | None = None) -> list[Block]:
    """All blocks of a page in their order, or those of one language."""
    found = list(_blocks(page, (ROOT / page).read_text(), 0))
    return [block for block in found if language in (None, block.language)]


def _blocks(page: str, text: str, before: int) -> Iterator[Block]:
    for token in MarkdownIt().parse(text):
        if token.type == "code_block":
            yield Block(page, before + token.map[0] + 1, "indented", token.content)
        elif token.type == "fence":
            line = before + token.map[0] + 1
            language = re.match(r"\{[^}]*\}|", token.info)[0] or token.info
            yield Block(page, line, language, token.content)
            if language.startswith("{"):  # a note, say, in which there may be others
                yield from _blocks(page, token.content, line)


def modules(page: str) -> dict[str, str]:
    """Of a page's Python blocks those that are files, as their first line says (``# name.py``): name and text."""
    return {match[1]: block.text for block in blocks(page, "python") if (match := _named(block.text))}


def program(page: str) -> list[tuple[int, str]]:
    """The other ones, which are one program: the line of each and its text."""
    return [(block.line, block.text) for block in blocks(page, "python") if not _named(block.text)]


def run(page: str, folder: Path) -> dict[str, object]:
    """Run a page in this process, as a program in ``folder``, which is the current one; the names it leaves."""
    for name, text in modules(page).items():
        (folder / name).write_text(text)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, text in program(page):
        exec(compile("\n" * line + text, ROOT / page, "exec"), namespace)
    return namespace


def _named(text: str) -> re.Match[str] | None:
    return re.match(r"# (\w+\.py)\n", text)


def commands(text: str, folder: Path) -> list[Command]:
    """What bash calls where it runs ``text`` in ``folder``, none of it in earnest."""
    heard = folder / "heard"
    heard.write_bytes(b"")
    _write_programs(folder / "bin")
    environment = {"PATH": str(folder / "bin"), "HOME": str(folder), "HEARD": str(heard)}
    environment["SLURM_JOB_NODELIST"] = "host[0-3]"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"bash ended with {done.returncode} ({done.stderr.strip()}), in {text}")
    fields = heard.read_text().split("\0")[:-1]
    found = []
    while fields:
        end = 1 + int(fields[0])
        told = dict(zip(TOLD, fields[end : end + len(TOLD)], strict=True))
        found.append(Command(tuple(fields[1:end]), {name: value for name, value in told.items() if value}))
        fields = fields[end + len(TOLD) :]
    return found


def _write_programs(folder: Path) -> None:
    if folder.exists():
        return
    folder.mkdir()
    told = " ".join(f'"${{{name}-}}"' for name in TOLD)
    heard = f'printf "%s\\0" $(($# + 1)) "${{0##*/}}" "$@" {told} >> "$HEARD"'
    for name, does in {**dict.fromkeys(PROGRAMS, heard), **SLURM}.items():
        (folder / name).write_text(f"#!{shutil.which('bash')}\n{does}\n")
        (folder / name).chmod(0o755)
    for name in TOOLS:
        os.symlink(str(shutil.which(name)), folder / name)


def on_ray(command: Command) -> bool:
    """Whether it is a training that starts a Ray of this machine: it is run by tests/ray/test_docs.py."""
    several = not {"--workers", "--scorers"}.isdisjoint(command.words)
    return command.words[:2] == ("python", "train.py") and several and not command.environment
