"""The report of a study, from its folder alone: `python -m promptmeup.study.report STUDY`.

It writes report.html (one file, everything embedded), report.md with plots/*.svg, and scores.json with all numbers.
The same folder gives the same bytes, wherever it lies.
"""

import argparse
import base64
import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from promptmeup.errors import UserError
from promptmeup.shard_format import write_atomically, write_json
from promptmeup.study.findings import Findings, find, numbers
from promptmeup.study.losses import read_losses
from promptmeup.study.markdown import as_markdown
from promptmeup.study.results import read_scores, read_study
from promptmeup.study.sections import Plot, Section, sections


def write_report(folder: Path) -> Findings:
    """Write the report of the study in `folder` into it, and return what it found.

    Raises:
        CorpusError: predictions are malformed.
        StudyError: another file is.
    """
    study = read_study(folder)
    results = read_scores(folder, study)
    found = find(study, results)
    parts = sections(found, read_losses(folder, study, results))
    status = describe_status(found)
    (folder / "plots").mkdir(exist_ok=True)
    drawn = {plot.file: plot.svg for part in parts for plot in part.plots}
    for stale in (folder / "plots").glob("*.svg"):
        if stale.name not in drawn:
            stale.unlink()
    for name, svg in drawn.items():
        write_atomically(folder / "plots" / name, svg.encode())
    write_atomically(folder / "report.md", as_markdown(study, status, parts).encode())
    write_atomically(folder / "report.html", _page(found, status, parts).encode())
    write_json(folder / "scores.json", numbers(found))
    return found


def describe_status(found: Findings) -> str:
    """Return how much of the study is finished."""
    study, results = found.study, found.results
    cells, done = len(study.arms) * len(study.seeds), len(results.finished)
    text = f"{done} of {cells} cells are finished: {len(study.arms)} arms, seeds {', '.join(map(str, study.seeds))}."
    if results.missing:
        lacking = sum((one.arm, one.seed) in results.finished for one in results.missing)
        text = (
            f"UNFINISHED. Cells missing: {cells - done}; files missing in finished cells: {lacking}. {text}"
        )
    return text


def _page(found: Findings, status: str, parts: Sequence[Section]) -> str:
    environment = Environment(
        loader=PackageLoader("promptmeup.study", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_url"] = _data_url
    return environment.get_template("report.html").render(
        study=found.study, status=status, is_whole=not found.results.missing, sections=parts
    )


def _data_url(plot: Plot) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(plot.svg.encode()).decode()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the reports of the folders on the command line."""
    parser = argparse.ArgumentParser(prog="python -m promptmeup.study.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="STUDY", help="folder with a study.json")
    for folder in parser.parse_args(arguments).folders:
        try:
            write_report(folder)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        print(folder / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
