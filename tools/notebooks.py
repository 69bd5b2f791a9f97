#!/usr/bin/env python
"""Execute the tutorials (tools/tutorials/*.py), and write them as notebooks to docs/tutorials.

python tools/notebooks.py            all of them
python tools/notebooks.py 1_shop     only those named
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jupytext
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 900  # at the most, for one cell: a machine in use may take ten times as long as an idle one


def main(names: list[str]) -> int:
    sources = sorted((ROOT / "tools" / "tutorials").glob("*.py"))
    unknown = set(names) - {source.stem for source in sources}
    if unknown:
        sys.exit(f"notebooks: expected some of {', '.join(s.stem for s in sources)}, got {', '.join(sorted(unknown))}")
    for source in sources:
        if names and source.stem not in names:
            continue
        begin = time.perf_counter()
        notebook = jupytext.read(source)
        NotebookClient(notebook, timeout=SECONDS, kernel_name="python3").execute()
        for number, cell in enumerate(notebook.cells):  # nothing that differs from run to run
            cell["id"] = f"cell-{number}"
            cell.metadata = {}
            if cell.cell_type == "code":
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        jupytext.write(notebook, ROOT / "docs" / "tutorials" / f"{source.stem}.ipynb", fmt="ipynb")
        print(f"{source.stem}: {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
