#!/usr/bin/env python
"""Write the files that follow from the records of the losses (zerosum_ext/losses/records.py).

python tools/generate_losses.py           write _names.py, losses/functional.py, losses/modules.py and docs/losses.md
python tools/generate_losses.py --check   write nothing; fail, and name the files, if one is out of date
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
if "zerosum_ext" not in sys.modules:
    # The records alone: the packages' own imports need the files that are about to be written.
    sys.path.insert(0, str(ROOT))
    for package in ("zerosum_ext", "zerosum_ext.losses"):
        bare = ModuleType(package)
        bare.__path__ = [str(ROOT.joinpath(*package.split(".")))]
        sys.modules[package] = bare

from zerosum_ext.losses.records import RECORDS, LossRecord  # noqa: E402

WIDTH = 120
GENERATED = "# Generated from zerosum_ext/losses/records.py by tools/generate_losses.py: change those, and run it.\n"

# Of each kind of scores: the arguments' description, and what "none" and the mean are.
SCORES = {
    "pair": {
        "pos": "scores of the positives, [B].",
        "neg": "scores of the negatives, [B] or [B, K]; each (positive, negative) pair is one sample.",
        "sample_weight": "non-negative factor of each sample, [B] or [B, K]; the mean still divides by the number of "
        "samples. A constant of the fused kernel; where it requires a gradient, plain PyTorch computes it.",
        "returns": 'A scalar, or for "none" a tensor of the shape of neg.',
    },
    "quad": {
        "pos, neg": "scores [B, 2]: two positives and two negatives of the same user in each row, which is one sample.",
        "sample_weight": "non-negative factor of each sample, [B]; the mean still divides by the number of samples.",
        "returns": 'A scalar, or for "none" a tensor [B].',
    },
    "row": {
        "pos": "scores of the positives, [B].",
        "neg": "scores of the negatives, [B, K]; each row is one sample.",
        "sample_weight": "non-negative factor of each sample, [B]; the mean still divides by the number of samples.",
        "returns": 'A scalar, or for "none" a tensor [B].',
    },
}
SCORES["branches"] = {
    **SCORES["pair"],
    "user_branch": "logit u of the user branch, [B].",
    "pos_branch, neg_branch": "logits i of the item branch of the positives, [B], and of the negatives, like neg.",
}
BRANCHES = ("user_branch", "pos_branch", "neg_branch")
COLUMNS = {"pair": "`[B]` with `[B]` or `[B, K]`", "quad": "`[B, 2]` each", "row": "`[B]` with `[B, K]`"}
COLUMNS["branches"] = COLUMNS["pair"] + ", and three branches"


def parameter(name: str, option: inspect.Parameter) -> str:
    """Return an option as it stands in a signature."""
    default = "" if option.default is option.empty else f" = {option.default!r}".replace("'", '"')
    return f"{name}: {option.annotation}{default}"


def paragraph(text: str, indent: int, hanging: int = 0) -> str:
    """Return text in lines of the source's width."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_long_words=False,
        break_on_hyphens=False,
    )


def docstring(
    indent: int, head: str, sections: dict[str, dict[str, str] | str], example: list[str] | None = None
) -> str:
    """Return a docstring in Google style, with its quotes."""
    pad = " " * indent
    first, _, rest = head.partition("\n")
    lines = [f'{pad}"""{first}']
    if rest.strip():
        for part in rest.strip().split("\n"):
            lines += ["", paragraph(part, indent)]
    for title, content in sections.items():
        lines += ["", f"{pad}{title}:"]
        if isinstance(content, str):
            lines.append(paragraph(content, indent + 4))
        else:
            lines += [paragraph(f"{name}: {text}", indent + 4, 4) for name, text in content.items()]
    if example:
        lines += ["", f"{pad}Example:", *(f"{pad}    {line}" for line in example)]
    return "\n".join([*lines, f'{pad}"""'])


# Scores, constants and items of the examples, by the kind of scores.
POS, NEG = (
    "torch.tensor([1.0, 2.0])",
    {"pair": "torch.tensor([0.5, -1.0])", "row": "torch.tensor([[0.5, -1.0], [0.0, 1.2]])"},
)
EXAMPLES = {
    "pair": (POS, NEG["pair"], "torch.tensor([0.5, 0.1])", "torch.tensor([1, 3])"),
    "row": (POS, NEG["row"], "torch.tensor([[0.5, 0.1], [0.1, 0.2]])", "torch.tensor([[1, 3], [3, 0]])"),
    "quad": ("torch.tensor([[1.0, 2.0]])", "torch.tensor([[0.5, -1.0]])", "", ""),
    "branches": (POS, NEG["pair"], "", ""),
}


def example_options(options: dict[str, inspect.Parameter]) -> list[str]:
    """Return the options that an example gives: w, and those that have no default."""
    return [
        f"{name}={0.9 if name == 'w' else 0.001}"
        for name, option in options.items()
        if name == "w" or option.default is option.empty
    ]


def function_example(record: LossRecord) -> list[str]:
    """Return the lines that an example of a loss's function enters."""
    pos, neg, shares, _ = EXAMPLES[record.scores]
    lines = ["import torch", "import zerosum_ext as zx", f"pos, neg = {pos}, {neg}"]
    arguments = ["pos", "neg"]
    if record.scores == "branches":
        lines += ["user, pos_item, neg_item = torch.tensor([[0.5, 0.2], [1.0, 0.5], [0.0, 0.1]])"]
        arguments += ["user", "pos_item", "neg_item"]
    if record.constants is not None and record.constants.required:
        log = ".log()" if record.constants.pos.startswith("log") else ""
        lines += [f"{record.constants.pos} = torch.tensor([0.4, 0.2]){log}", f"{record.constants.neg} = {shares}{log}"]
        arguments += [record.constants.pos, record.constants.neg]
    call = ", ".join([*arguments, *example_options(record.function_options)])
    return [*lines, f"zx.{record.name}_loss({call})"]


def module_example(record: LossRecord) -> list[str]:
    """Return the lines that an example of a loss's module enters."""
    pos, neg, _, items = EXAMPLES[record.scores]
    options, look_up = example_options(record.module_options), ""
    lines = ["import torch", "import zerosum_ext as zx"]
    if record.constants is not None and record.constants.required:
        lines.append(f"{record.constants.items} = torch.tensor([50.0, 20.0, 10.0, 5.0])  # of four items")
        options.insert(0, record.constants.items)
        look_up = f", pos_items=torch.tensor([0, 2]), neg_items={items}"
    lines += [f"loss = zx.{record.class_name}({', '.join(options)})", f"pos, neg = {pos}, {neg}"]
    return [*lines, f"loss(pos, neg{look_up})"]


def shown(lines: list[str], names: dict[str, object]) -> list[str]:
    """Return lines as an example with the value of the last one, computed by a package of the given names."""
    space: dict[str, object] = {}
    kept = sys.modules["zerosum_ext"]
    sys.modules["zerosum_ext"] = SimpleNamespace(**names)  # type: ignore[assignment]
    try:
        exec("\n".join(lines[:-1]), space)
        value = eval(lines[-1], space)
    finally:
        sys.modules["zerosum_ext"] = kept
    return [*(f">>> {line}" for line in lines), repr(value)]


def described(record: LossRecord) -> str:
    """Return the head of a docstring: the summary, the formula and the note."""
    return f"{record.summary}.\n``{record.formula}``, {record.source}.\n{record.note}"


def function(record: LossRecord, names: dict[str, object] | None = None) -> str:
    """Return the source of a loss's function, with an example where the functions themselves are given by name."""
    constants, options = record.constants, record.function_options
    positional, keywords = ["pos: Tensor", "neg: Tensor"], []
    about = dict(SCORES[record.scores])
    returns = about.pop("returns")
    weight = about.pop("sample_weight")
    if record.scores == "branches":
        positional += [f"{name}: Tensor" for name in BRANCHES]
    if constants is not None:
        both = (constants.pos, constants.neg)
        about[", ".join(both)] = constants.about
        if constants.required:
            positional += [f"{name}: Tensor" for name in both]
        else:
            keywords += [f"{name}: Tensor | None = None" for name in both]
    keywords += [parameter(name, option) for name, option in options.items()]
    keywords += ["sample_weight: Tensor | None = None", 'reduction: Reduction = "mean"']
    about |= {name: record.options[name] for name in options}
    about |= {"sample_weight": weight, "reduction": '"none", "sum" or "mean".'}
    sections = {
        "Args": about,
        "Returns": returns,
        "Raises": {
            "TypeError": "scores or weights that are not floating-point tensors, an option of another type.",
            "ValueError": "shapes or devices that do not fit, an unknown reduction, an option out of range.",
        },
    }
    lines = [f"def {record.name}_loss(", *(f"    {p}," for p in positional), "    *,", *(f"    {k}," for k in keywords)]
    example = shown(function_example(record), names) if names else None
    lines += [") -> Tensor:", docstring(4, described(record), sections, example)]
    kernel = f"records.{record.name}({', '.join(inspect.signature(record.kernel).parameters)})"
    extra = ""
    if constants is not None:
        own = [name for name in options if name in inspect.signature(constants.of_scores).parameters]
        lines.append(f"    x_pos, x_neg = records.{constants.of_scores.__name__}({', '.join([*both, *own])})")
        extra = f', (("{constants.pos}", x_pos), ("{constants.neg}", x_neg))'
    if record.shared:
        lines += ["    if shared:", f'        {record.shared} = shared_score("{record.shared}", {record.shared})']
    scores = ", ".join(["pos", "neg", *(BRANCHES if record.scores == "branches" else ())])
    lines.append(f"    return {record.scores}_loss({scores}, sample_weight, {kernel}, reduction{extra})")
    return "\n".join(lines)


def module(record: LossRecord, names: dict[str, object] | None = None) -> str:
    """Return the source of a loss's module, with an example where the modules themselves are given by name."""
    constants, options = record.constants, record.module_options
    about = {name: record.options[name] for name in options}
    arguments = [parameter(name, option) for name, option in options.items()]
    if constants is not None:
        if constants.required:
            arguments.insert(0, f"{constants.items}: Tensor")
            about = {constants.items: constants.items_about, **about}
        else:
            arguments.append(f"{constants.items}: Tensor | None = None")
            about[constants.items] = constants.items_about
    arguments.append('reduction: Reduction = "mean"')
    about["reduction"] = '"none", "sum" or "mean".'
    head = f"{record.summary}.\n``{record.formula}``, {record.source}. The function is :func:`{record.name}_loss`."
    base = "" if constants is None else ", constants"
    example = shown(module_example(record), names) if names else None
    lines = [f"class {record.class_name}(RecordLoss):", docstring(4, head, {"Args": about}, example), ""]
    lines += [f'    record = RECORDS["{record.name}"]']
    if record.scores == "quad":
        lines.append("    num_positives: ClassVar[int] = 2")
    lines += ["", "    def __init__(", "        self,", *(f"        {a}," for a in arguments), "    ) -> None:"]
    if constants is not None:
        own = [name for name in options if name in inspect.signature(constants.of_items).parameters]
        lines.append(f"        constants = records.{constants.of_items.__name__}({', '.join([constants.items, *own])})")
    lines.append(f"        super().__init__(reduction{base})")
    lines += [f"        self.{name} = {name}" for name in options]
    if inspect.signature(record.kernel).parameters:
        lines.append("        self.kernel()  # checks the options")
    kernel = f"records.{record.name}({', '.join(f'self.{n}' for n in inspect.signature(record.kernel).parameters)})"
    unless = "None if self.shared else " if record.shared else ""
    lines += [
        "",
        f"    def kernel(self) -> Kernel{' | None' if record.shared else ''}:",
        '        """Return the compiled loss that forward amounts to'
        + (', or None for the shared form."""' if record.shared else '."""'),
        f"        return {unless}{kernel}",
        "",
    ]
    extra, look_up = "", ""
    if constants is not None:
        extra = ", pos_items: Tensor | None = None, neg_items: Tensor | None = None"
        look_up = ", self.look_up(pos_items, neg_items)"
    lines += [
        f"    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None{extra}) -> Tensor:",
        '        """Return the loss of the scores; arguments as for the function."""',
    ]
    if record.shared:
        lines += ["        if self.shared:"]
        lines += [f'            {record.shared} = shared_score("{record.shared}", {record.shared})']
    lines.append(f"        return {record.scores}_loss(pos, neg, sample_weight, {kernel}, self.reduction{look_up})")
    return "\n".join(lines)


def imports(text: str, names: dict[str, list[str]]) -> str:
    """Return the import statements for those names that the text uses."""
    out = []
    for where, candidates in names.items():
        used = [name for name in candidates if re.search(rf"\b{name}\b", text)]
        if used:
            out.append(f"from {where} import {', '.join(used)}\n")
    return "".join(out)


def defined(source: str) -> dict[str, object]:
    """Return what a source defines: losses without examples, which compute the values that examples show."""
    space: dict[str, object] = {"__name__": "zerosum_ext.losses.generated"}
    exec(compile(source, "generated", "exec"), space)
    return space


def functional_source(examples: dict[str, object] | None = None) -> str:
    """Return the source of zerosum_ext/losses/functional.py, not yet formatted."""
    if examples is None:
        examples = defined(functional_source({}))
    body = "\n\n\n".join(function(record, examples) for record in RECORDS.values())
    names = [f"{name}_loss" for name in RECORDS] + ["ipw_weights"]
    own = {
        "typing": ["Literal"],
        "torch": ["Tensor"],
        "zerosum_ext._types": ["Reduction"],
        "zerosum_ext.losses": ["records"],
        "zerosum_ext.losses.records": ["ipw_weights"],
        "zerosum_ext.losses.shapes": ["branches_loss", "pair_loss", "quad_loss", "row_loss", "shared_score"],
    }
    head = '"""The losses as functions of scores, with a real signature and docstring each."""\n\n' + GENERATED
    listed = "".join(f'    "{name}",\n' for name in sorted(names))
    return (
        f"{head}\nfrom __future__ import annotations\n\n{imports(body + ' ipw_weights', own)}\n"
        f"__all__ = [\n{listed}]\n\n\n{body}\n"
    )


def modules_source(examples: dict[str, object] | None = None) -> str:
    """Return the source of zerosum_ext/losses/modules.py, not yet formatted."""
    if examples is None:
        examples = defined(modules_source({}))
    records = [record for record in RECORDS.values() if record.scores != "branches"]
    body = "\n\n\n".join(module(record, examples) for record in records)
    own = {
        "typing": ["ClassVar", "Literal"],
        "torch": ["Tensor"],
        "zerosum_ext._types": ["Reduction"],
        "zerosum_ext.losses": ["records"],
        "zerosum_ext.losses.base": ["RecordLoss"],
        "zerosum_ext.losses.records": ["RECORDS"],
        "zerosum_ext.losses.shapes": ["pair_loss", "quad_loss", "row_loss", "shared_score"],
        "zerosum_ext.reference": ["Kernel"],
    }
    listed = "".join(f'    "{name}",\n' for name in sorted(r.class_name for r in records))
    return (
        f'"""The losses as modules, for ``loss=`` in training."""\n\n{GENERATED}\n'
        f"from __future__ import annotations\n\n{imports(body, own)}\n__all__ = [\n{listed}]\n\n\n{body}\n"
    )


def names_source() -> str:
    """Return the source of zerosum_ext/_names.py, not yet formatted."""
    homes = dict.fromkeys([*(f"{name}_loss" for name in RECORDS), "ipw_weights"], "losses.functional")
    homes |= {record.class_name: "losses.modules" for record in RECORDS.values() if record.scores != "branches"}
    listed = "".join(f'    "{name}": "{homes[name]}",\n' for name in sorted(homes))
    return (
        f'"""The losses that the package shows, and their modules: known without loading these."""\n\n{GENERATED}\n'
        f"LOSSES: dict[str, str] = {{\n{listed}}}\n"
    )


def table() -> str:
    """Return the tables of docs/losses.md."""
    rows = ["| function | a sample's value | scores | source |", "|---|---|---|---|"]
    formulas = ["| function | in LaTeX |", "|---|---|"]
    for record in RECORDS.values():
        rows.append(f"| `{record.name}_loss` | `{record.formula}` | {COLUMNS[record.scores]} | {record.source} |")
        latex = record.latex.replace("|", r"\vert ")
        formulas.append(f"| `{record.name}_loss` | ${latex}$ |")
    options = ["| function | options and their defaults |", "|---|---|"]
    for record in RECORDS.values():
        given = ", ".join(
            name if option.default is option.empty else f"{name}={option.default!r}"
            for name, option in record.function_options.items()
        )
        options.append(f"| `{record.name}_loss` | {f'`{given}`' if given else 'none'} |")
    return "\n".join([*rows, "", *options, "", *formulas]) + "\n"


BEGIN, END = "<!-- generated by tools/generate_losses.py -->\n", "<!-- end of the generated part -->\n"


def docs_text(old: str) -> str:
    """Return docs/losses.md with its generated part made anew."""
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def contents() -> dict[Path, str]:
    """Return the files and what they should hold."""
    package, docs = ROOT / "zerosum_ext" / "losses", ROOT / "docs" / "losses.md"
    return {
        ROOT / "zerosum_ext" / "_names.py": formatted(names_source()),
        package / "functional.py": formatted(functional_source()),
        package / "modules.py": formatted(modules_source()),
        docs: docs_text(docs.read_text()),
    }


def formatted(source: str) -> str:
    """Return Python source as ruff formats it, with imports in order."""
    for command in (["ruff", "check", "--fix", "-q", "--select", "I"], ["ruff", "format", "-q"]):
        done = subprocess.run(
            [sys.executable, "-m", *command, "--stdin-filename", str(ROOT / "zerosum_ext/losses/x.py"), "-"],
            input=source,
            capture_output=True,
            text=True,
            check=True,
        )
        source = done.stdout
    return source


def main() -> int:
    stale = [path for path, text in contents().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python tools/generate_losses.py", file=sys.stderr)
        return bool(stale)
    for path in stale:
        path.write_text(contents()[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
