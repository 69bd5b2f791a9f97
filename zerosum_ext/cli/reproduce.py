"""``zerosum-ext reproduce``: run experiment files and report beside the published figures."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerosum_ext.experiments import reproduce


def add_to(commands: Any) -> None:
    """Add the command."""
    reproduce = commands.add_parser(
        "reproduce",
        help="run experiment files, and report beside the published figures",
        description="Runs the methods and seeds of experiment files that are not finished yet, and writes a report "
        "with the published figures beside those reached. Interrupt it and run it again: it goes on.",
        epilog="example: zerosum-ext reproduce --experiment benchmarks/paper/synthetic.toml --jobs 2",
    )
    reproduce.add_argument("--experiment", nargs="+", required=True, metavar="FILE", help="TOML files")
    reproduce.add_argument(
        "--output", default="runs/paper", metavar="DIR", help="results go here (default: %(default)s)"
    )
    reproduce.add_argument("--report", metavar="FILE", help="the report (default: REPORT.md in the results' folder)")
    reproduce.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once (default: %(default)s)")
    reproduce.add_argument("--only", metavar="TEXT", help="run only methods whose name contains this")
    reproduce.add_argument("--seed", type=int, nargs="+", metavar="S", help="run only these of the file's seeds")
    reproduce.add_argument("--no-run", action="store_true", help="report what is finished, run nothing")
    reproduce.add_argument("--no-figures", action="store_true", help="draw none")
    reproduce.add_argument(
        "--findings", metavar="FILE", help="text that opens the report (default: FINDINGS.md beside the first file)"
    )
    reproduce.add_argument(
        "--renew",
        nargs="+",
        default=(),
        metavar="FILE",
        help="also renew the overview of tuned experiments in these texts, between the lines that mark it",
    )
    reproduce.add_argument(
        "--json", action="store_true", help="print the finished cells' figures as JSON, not the report"
    )
    reproduce.add_argument("--quiet", action="store_true", help="no progress bar")
    reproduce.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from zerosum_ext._files import read_text, write_text
    from zerosum_ext.experiments import reproduce

    report = Path(arguments.report) if arguments.report else Path(arguments.output) / "REPORT.md"
    findings = Path(arguments.findings or Path(arguments.experiment[0]).parent / "FINDINGS.md")
    head = ["# Published experiments, run again", ""]
    if arguments.findings or findings.is_file():
        head += [read_text(findings).strip(), ""]
    experiments = {path: reproduce.read_experiment(path) for path in arguments.experiment}
    _check_names(experiments)
    if not arguments.no_run:
        _check_selection(experiments.values(), arguments.only, arguments.seed)
    sections, finished, everything = [], {}, list[reproduce.Results]()
    html = Path(arguments.output) / "report.html"
    tuned: list[reproduce.Shown] = []
    open_ = [reproduce.title_of(one) for one in experiments.values() if one.protocol == "tuned"]
    for path, experiment in experiments.items():
        results = _results(path, experiment, arguments)
        finished[experiment.name] = _figures(results)
        everything.append(results)
        report.parent.mkdir(parents=True, exist_ok=True)
        if experiment.protocol == "tuned" and any(results.records.values()):
            tuned.append(reproduce.Shown(results, reproduce.compared(results, arguments.output)))
            open_.remove(tuned[-1].title)
        figures = {}
        if not arguments.no_figures:
            drawn = reproduce.draw(results, arguments.output, report.parent / "figures")
            figures = {caption: f"figures/{file.name}" for caption, file in drawn.items()}
        sections.append(reproduce.report(results, figures))
        # The report is written after every experiment, so that an interrupted command has reported what it ran.
        html.parent.mkdir(parents=True, exist_ok=True)
        write_text(html, reproduce.page(everything, tuned))
        write_text(report, "\n".join([*head, *_together(tuned, open_, report, not arguments.no_figures), *sections]))
    if tuned:
        _renew(arguments.renew, tuned, open_, report, not arguments.no_figures)
    if arguments.json:
        print(json.dumps({"report": str(report), "results": arguments.output, "experiments": finished}, indent=2))
        return 0
    print("\n".join([*_together(tuned, open_, report, False), *sections]))
    print(f"the report is in {report} and {html}, the results in {arguments.output}")
    return 0


def _together(tuned: Sequence[reproduce.Shown], not_run: Sequence[str], report: Path, figures: bool) -> list[str]:
    """Return what tuned experiments show together; with ``figures`` draw it, and write figures.csv, by the report."""
    from zerosum_ext._files import write_text
    from zerosum_ext.experiments import reproduce

    if not tuned:
        return []
    picture = report.parent / "figures" / "accuracy-and-bias.png"
    if figures:
        picture.parent.mkdir(parents=True, exist_ok=True)
        reproduce.draw_together(tuned, picture)
        write_text(report.parent / "figures.csv", reproduce.figures_csv(tuned))
    text = reproduce.overview(tuned, f"figures/{picture.name}" if figures else None, not_run)
    return ["## Accuracy against bias, tuned", "", text, "All figures: [figures.csv](figures.csv).", ""]


def _renew(
    files: Iterable[str], tuned: Sequence[reproduce.Shown], not_run: Sequence[str], report: Path, figures: bool
) -> None:
    """Write the overview of tuned experiments into texts of others, which mark its place."""
    from zerosum_ext._files import read_text, write_text
    from zerosum_ext.experiments import reproduce

    for file in files:
        picture = os.path.relpath(report.parent / "figures" / "accuracy-and-bias.png", Path(file).parent)
        try:
            text = reproduce.overview(tuned, picture if figures else None, not_run)
            text = reproduce.renew(read_text(file), text)
        except ValueError as error:
            raise ValueError(f"--renew: {file}: {error}") from None
        write_text(file, text)


def _results(path: str, experiment: reproduce.Experiment, arguments: argparse.Namespace) -> reproduce.Results:
    """Run what is not finished, unless that is not wanted or the data are missing, and return what is finished."""
    from zerosum_ext.experiments import reproduce

    missing = "" if arguments.no_run else experiment.missing_data()
    if missing:
        logging.getLogger(__name__).warning("%s: skipped. %s", path, missing)
    if missing or arguments.no_run:
        return reproduce.load(path, arguments.output)
    return reproduce.run(
        path,
        arguments.output,
        jobs=arguments.jobs,
        only=arguments.only,
        seeds=arguments.seed,
        progress=False if arguments.quiet else None,
    )


def _figures(results: reproduce.Results) -> dict[str, list[dict[str, Any]]]:
    """Return for each method its finished cells: the seed and the figures of the last and of the best epoch."""
    return {
        name: [{"seed": record["seed"], "metrics": record["metrics"]} for record in records]
        for name, records in results.records.items()
    }


def _check_names(experiments: Mapping[str, reproduce.Experiment]) -> None:
    """Raise if two experiments have one name, as their results would have one file."""
    from zerosum_ext._files import same_name

    for name in (experiment.name for experiment in experiments.values()):
        # (Some file systems take names for one that differ in case alone.)
        files = [path for path, experiment in experiments.items() if same_name(experiment.name) == same_name(name)]
        if len(files) > 1:
            raise ValueError(
                f"--experiment: expected files of different names, got {' and '.join(files)}: results of one file"
            )


def _check_selection(experiments: Iterable[reproduce.Experiment], only: str | None, seeds: list[int] | None) -> None:
    """Raise if --only or --seed names nothing that any of the experiments has."""
    cells = [cell for experiment in experiments for cell in experiment.cells()]
    for seed in seeds or ():
        if not any(cell.method.seed == seed for cell in cells):
            known = sorted({cell.method.seed for cell in cells})
            raise ValueError(f"--seed: expected seeds of the files, {', '.join(map(str, known))}, got {seed}")
    if only is not None and not any(
        only in cell.name and (seeds is None or cell.method.seed in seeds) for cell in cells
    ):
        methods = ", ".join(dict.fromkeys(repr(cell.name) for cell in cells))
        raise ValueError(f"--only: expected a part of a method's name, {methods}, got {only!r}")
