"""``nox``: what a user installs, into an empty environment on every Python that is supported.

    pip install nox
    nox                                         # all; needs these interpreters and a package index
    nox -s installed-3.12

Each session builds the wheel or the sdist, installs it with its pinned dependencies and nothing else, and runs
``tests/smoke.py`` from another folder, so that nothing of this one is imported.
"""

import nox

nox.options.default_venv_backend = "venv"


@nox.session(python=["3.11", "3.12", "3.13"])
def installed(session: nox.Session) -> None:
    """The wheel, with the extras that ``train.py`` wants."""
    _smoke(session, "--wheel", "*.whl")


@nox.session(python="3.11")
def from_source(session: nox.Session) -> None:
    """The sdist, from which pip builds a wheel."""
    _smoke(session, "--sdist", "*.tar.gz")


def _smoke(session: nox.Session, kind: str, pattern: str) -> None:
    from pathlib import Path

    root, folder = Path(__file__).parent, Path(session.create_tmp())
    session.install("build")
    session.run("python", "-m", "build", kind, "--outdir", str(folder), str(root), silent=True)
    (built,) = folder.glob(pattern)
    session.install("--constraint", str(root / "constraints.txt"), f"{built}[train,report]")
    session.chdir(folder)
    session.run("python", "-P", str(root / "tests" / "smoke.py"))  # -P: nor anything that lies beside it
