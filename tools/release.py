#!/usr/bin/env python
"""Check what a release needs, and print the text of its tag.

python tools/release.py           check version, changelog, citation and git; print the tag's text and the commands
python tools/release.py --write   first turn what is unreleased in CHANGELOG.md into the section of this version
"""

from __future__ import annotations

import datetime
import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = ROOT / "CHANGELOG.md"
UNRELEASED = "## [Unreleased]\n"


def section(text: str, name: str) -> str | None:
    """Return the text below a version's heading, or None where there is no such heading."""
    found = re.search(rf"^## \[{re.escape(name)}\][^\n]*\n(.*?)(?=^## \[|\Z)", text, re.M | re.S)
    return None if found is None else found[1].strip()


def released(text: str, version: str, date: str) -> str:
    """Return the changelog with what is unreleased under the heading of a version, which must be a new one."""
    if section(text, version) is not None:
        raise ValueError(f"CHANGELOG.md: there is a section [{version}] already")
    return text.replace(UNRELEASED, f"{UNRELEASED}\n## [{version}] - {date}\n", 1)


def obstacles(root: Path, version: str, changelog: str) -> list[str]:
    """Return what stands in the way of a release."""
    found = []
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        found.append(f"_version.py: expected a version such as 1.2.3, got {version}")
    if section(changelog, "Unreleased"):
        found.append(
            f"CHANGELOG.md: lines are unreleased beside a section [{version}]: move them there or raise the version"
            if section(changelog, version)
            else "CHANGELOG.md: there are unreleased lines; python tools/release.py --write gives them this version"
        )
    if not section(changelog, version):
        found.append(f"CHANGELOG.md: there is no section [{version}], or it is empty")
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    if cited is None or cited[1] != version:
        found.append(f"CITATION.cff: expected version {version}, got {cited and cited[1]}")
    if git(root, "status", "--porcelain", "--untracked-files=no"):
        found.append("git: there are changes that are not committed")
    if git(root, "tag", "--list", f"v{version}"):
        found.append(f"git: the tag v{version} is there already")
    return found


def git(root: Path, *arguments: str) -> str:
    """Return what git says."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    version = runpy.run_path(str(ROOT / "zerosum_ext" / "_version.py"))["__version__"]
    changelog = CHANGELOG.read_text(encoding="utf-8")
    if "--write" in sys.argv and section(changelog, "Unreleased") and section(changelog, version) is None:
        changelog = released(changelog, version, datetime.datetime.now(datetime.timezone.utc).date().isoformat())
        CHANGELOG.write_text(changelog, encoding="utf-8")
    found = obstacles(ROOT, version, changelog)
    for obstacle in found:
        print(f"release: {obstacle}", file=sys.stderr)
    if found:
        return 1
    print(f"zerosum_ext {version}\n\n{section(changelog, version)}\n")
    print(f"# git tag -a v{version} -F FILE_WITH_THIS_TEXT && git push origin v{version}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
