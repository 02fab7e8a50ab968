"""Runs the notebooks beside it in a kernel of their own and keeps their outputs.

    python docs/notebooks/execute.py                # all of them
    python docs/notebooks/execute.py long_tail      # one

What is written names no machine, folder or time, so that a file differs only where
an output does. What TensorFlow logs while it loads is left out; anything else on the
standard error is refused, as an error in a cell is. A picture's words for those who
do not see it are in its cell's metadata, where MyST-NB takes them from. Needs
``nbclient`` and ``ipykernel``, which the extra ``docs`` brings.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
LOGGED = re.compile(
    r"WARNING: All log messages before"
    r"|([IWE]\d{4} [\d:.]+ +\d+|\d{4}-\d\d-\d\d [\d:.]+: [IWE]) .*\.cc:\d+\]"
)
SECONDS = 600  # for a cell


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with new outputs, counted from 1; changes what it is given.

    nbclient's ``CellExecutionError`` where a cell fails, ``RuntimeError`` where one
    writes to the standard error.
    """
    os.environ.pop("MPLBACKEND", None)  # the kernel's own keeps the pictures
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    for cell in notebook.cells:
        for name in cell.metadata.keys() - {"mystnb"}:
            del cell.metadata[name]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _logged(output)]
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def _logged(output: nbformat.NotebookNode) -> bool:
    """Whether an output is what TensorFlow logs while it loads."""
    if output.output_type != "stream" or output.name != "stderr":
        return False
    lines = [line for line in output.text.splitlines() if line.strip()]
    others = [line for line in lines if not LOGGED.match(line)]
    if others:
        raise RuntimeError("a cell wrote to the standard error:\n" + "\n".join(others))
    return True


def main(names: list[str]) -> None:
    """Execute the notebooks of these names, all where there are none."""
    named = [HERE / f"{name}.ipynb" for name in names]
    for path in named or sorted(HERE.glob("*.ipynb")):
        notebook = executed(nbformat.read(path, as_version=4))
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main(sys.argv[1:])
