"""The documentation as a web site: make docs."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zerosum_ext import __version__  # noqa: E402

project = "zerosum_ext"
author = "The zerosum_ext developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
# torch's own docstrings are not ours to mend.
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_preprocess_types = False
napoleon_use_ivar = True
doctest_test_doctest_blocks = "default"
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
linkcheck_timeout = 20

# Attributes of several classes have one name, such as loss.
suppress_warnings = ["ref.python"]

# Messages of errors begin with a file and a line, which a parser of links takes for one.
linkcheck_ignore = [r"file:line"]

html_theme = "furo"
html_title = f"zerosum_ext {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}


# Pages that stand outside of docs/.
PAGES = {
    "changes": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "findings": "benchmarks/paper/FINDINGS.md",
}


def indexed(text: str) -> str:
    """Put the names of measures and words into the index, as main entries, which the search lists first."""

    def names(match: re.Match[str]) -> str:
        found = re.findall(r"^\| ([\w@]+) \|", match[0], re.M)[1:]
        return f"```{{index}} {', '.join(f'! {one}' for one in found)}\n```\n\n{match[0]}"

    text = re.sub(r"^\| name \|.*?(?=\n\n)", names, text, flags=re.M | re.S)
    return re.sub(
        r"^(.+)\n(?=: )",
        lambda m: f"```{{index}} {', '.join(f'! {one}' for one in m[1].split(', '))}\n```\n\n{m[0]}",
        text,
        flags=re.M,
    )


def read_page(app: Any, name: str, source: list[str]) -> None:
    """Fetch a page from outside of docs/, and show links to files that are not part of the site as their paths."""
    text, here = source[0], ROOT / "docs" / name
    if name in PAGES:
        here = ROOT / PAGES[name]
        text = here.read_text(encoding="utf-8")
        if not text.startswith("# "):
            text = f"# {name.capitalize()}\n\n{text}"

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        path = (here.parent / target).resolve()
        inside = {str(ROOT / file): f"{page}.md" for page, file in PAGES.items()}
        if str(path) in inside:
            return f"[{words}]({inside[str(path)]}{anchor})"
        if path.is_relative_to(ROOT / "docs"):
            # A link that is called like its file, such as data.md, takes the title of the page or section.
            title = "" if path.suffix == ".md" and words == path.name else words
            return f"[{title}]({os.path.relpath(path, (ROOT / 'docs' / name).parent)}{anchor})"
        if path.is_relative_to(ROOT):
            file = str(path.relative_to(ROOT))
            return f"`{file}`" if file.endswith(words.strip("`")) else f"{words} (`{file}`)"
        return match[0]

    def picture(match: re.Match[str]) -> str:
        path = os.path.relpath((here.parent / match[2]).resolve(), (ROOT / "docs" / name).parent)
        return f"![{match[1]}]({path})"

    if name == "glossary":
        text = indexed(text)
    text = re.sub(r"!\[([^\[\]]*)\]\((?!\w+:)([^)\s]+)\)", picture, text)
    source[0] = re.sub(r"(?<!!)\[([^\[\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)", link, text)


def only_links_that_can_be_asked(app: Any) -> None:
    """Let linkcheck pass where no other site answers: that says nothing about the links."""
    if app.builder.name != "linkcheck":
        return
    try:
        with socket.create_connection(("pytorch.org", 443), timeout=10):
            return
    except OSError as error:
        print(f"linkcheck: pytorch.org does not answer ({error}), so links to other sites are not checked")
        app.config.linkcheck_ignore = [*linkcheck_ignore, r"https?://"]


def formula(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers show without a script from elsewhere."""
    block = isinstance(node, nodes.math_block)
    writer.body.append(convert(node.astext(), display="block" if block else "inline"))
    raise nodes.SkipNode


def short_signature(app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str) -> Any:
    """Show a default that is made anew as three dots: Sphinx would not understand the rest of the signature either."""
    return (signature and signature.replace("<factory>", "..."), returns)


# Stands for a colon while napoleon reads, which takes what is before a colon for a type.
COLON = "\ue000"


def as_napoleon_reads(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give each attribute an entry of its own, and mark examples in the docstrings of modules as such."""
    if what in ("attribute", "data"):
        lines[:] = [line.replace(":", COLON) for line in lines]
    elif what == "module":
        for i in reversed(range(1, len(lines))):
            if lines[i].startswith("    ") and not lines[i - 1]:
                before = next((line for line in reversed(lines[:i]) if line), "")
                if not before.startswith(" ") and not before.endswith("::") and not re.match(r"\w+:$|\.\.|- ", before):
                    lines[i:i] = ["::", ""]
    elif what == "class" and "Attributes:" in lines:
        begin = lines.index("Attributes:") + 1
        end = next((i for i in range(begin, len(lines)) if re.match(r"\S", lines[i])), len(lines))
        entries = re.split(r"\n(?=    \S)", "\n".join(lines[begin:end]))
        split = []
        for entry in entries:
            several = re.match(r"    (\w+(?:, \w+)+)(?=( \(.*?\))?: )", entry)
            names = several[1].split(", ") if several else []
            split += [f"    {one}{entry[several.end() :]}" for one in names] if several else [entry]  # type: ignore[union-attr]
        lines[begin:end] = "\n".join(split).split("\n")


def colons_again(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put colons back in place."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def only_words_of_ours(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Leave out what Python says of every field of a named tuple."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def setup(app: Any) -> None:
    """Connect what is above."""
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("autodoc-process-signature", short_signature)
    app.connect("autodoc-process-docstring", as_napoleon_reads, priority=400)  # napoleon itself has 500
    app.connect("autodoc-process-docstring", colons_again, priority=600)
    app.connect("autodoc-process-docstring", only_words_of_ours, priority=700)
    app.connect("source-read", read_page)
    app.connect("builder-inited", only_links_that_can_be_asked)
