"""The report as Markdown, with pictures beside it."""

import re
from collections.abc import Iterator, Sequence

from promptmeup.study.results import Study
from promptmeup.study.sections import Section
from promptmeup.study.tables import Cell, Table

_SPECIAL = re.compile(r"([\\`*_\[\]<>|$&#])")


def as_markdown(study: Study, status: str, sections: Sequence[Section]) -> str:
    """Return the whole report."""
    return "\n\n".join(_blocks(study, status, sections)) + "\n"


def _blocks(study: Study, status: str, sections: Sequence[Section]) -> Iterator[str]:
    yield f"# {_escaped(study.title)}"
    yield _escaped(study.question)
    yield f"**{_escaped(status)}**"
    yield _code(study.command)
    for section in sections:
        yield f"## {_escaped(section.title)}"
        yield from map(_escaped, section.text)
        if section.code:
            yield _code(section.code)
        for plot in section.plots:
            yield f"![{_escaped(plot.alt)}](<plots/{plot.file}>)"
        yield from map(_table, section.tables)
        yield from map(_escaped, section.notes)


def _table(table: Table) -> str:
    side = "---:" if table.numbers else "---"
    lines = [
        " | ".join(map(_escaped, table.head)),
        " | ".join(["---", *[side] * (len(table.head) - 1)]),
        *(" | ".join(map(_cell, row)) for row in table.rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(cell: Cell) -> str:
    return f"**{_escaped(cell.text)}**" if cell.tone else _escaped(cell.text)


def _code(text: str) -> str:
    return f"```\n{text}\n```"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
