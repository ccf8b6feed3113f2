"""What a check finds, on one rank, and what the ranks' findings say together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from promptmeup.errors import UserError

Status = Literal["ok", "warning", "failed"]
ORDER: tuple[Status, ...] = ("ok", "warning", "failed")
"""from good to bad"""
GB = 1e9
_SHOWN = 3
"""different findings of one check that are printed; facts have all"""


@dataclass(frozen=True)
class Finding:
    """The outcome of a check; what is not ok says what to do."""

    status: Status
    text: str
    """one line"""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values"""
    name: str = ""
    """of the check; `look` sets it"""

    @staticmethod
    def of(values: Mapping[str, Any]) -> "Finding":
        """Return the finding that `asdict` made `values` of."""
        return Finding(**values)


def ok(text: str, **facts: Any) -> Finding:
    return Finding("ok", text, facts)


def warning(text: str, **facts: Any) -> Finding:
    return Finding("warning", text, facts)


def failed(text: str, **facts: Any) -> Finding:
    return Finding("failed", text, facts)


def look(name: str, check: Callable[..., Finding], *values: Any, **named: Any) -> Finding:
    """Return what `check(*values, **named)` finds; an error of any kind is a finding too."""
    try:
        found = check(*values, **named)
    except UserError as error:
        found = failed(_one_line(error))
    except Exception as error:
        found = failed(f"{type(error).__name__}: {_one_line(error)}; this check met what it does not know")
    return replace(found, name=name)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@dataclass(frozen=True)
class Report:
    """What rank 0 prints."""

    findings: tuple[Finding, ...]
    hosts: Mapping[int, str]
    """by rank; without the ranks that are missing"""
    size: int

    @property
    def status(self) -> Status:
        return worst(self.findings)

    @property
    def exit_code(self) -> int:
        """0 where a run can start, warnings or not; else 1."""
        return int(self.status == "failed")

    def as_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "ranks": self.size,
            "hosts": {str(rank): host for rank, host in self.hosts.items()},
            "checks": [{"name": found.name, **asdict(found)} for found in self.findings],
        }

    def __str__(self) -> str:
        width = max(len(found.name) for found in self.findings)
        lines = [f"{_MARKS[found.status]:7} {found.name:{width}}  {found.text}" for found in self.findings]
        counts = {status: sum(found.status == status for found in self.findings) for status in ORDER}
        verdict = "nothing stands in the way" if not self.exit_code else "a run would not get through"
        warnings = f"{counts['warning']} warning{'' if counts['warning'] == 1 else 's'}"
        summary = f"{counts['ok']} ok, {warnings}, {counts['failed']} failed: {verdict}"
        return "\n".join([*lines, summary])


_MARKS: dict[Status, str] = {"ok": "ok", "warning": "warning", "failed": "FAILED"}


def worst(findings: Sequence[Finding]) -> Status:
    return max((found.status for found in findings), key=ORDER.index)


def where(ranks: Sequence[int], hosts: Mapping[int, str]) -> str:
    """Return the ranks with their hosts: "node1 (rank 0) and node2 (ranks 2, 3)"."""
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(hosts[rank], []).append(rank)
    return " and ".join(
        f"{host} (rank{'s' if len(own) > 1 else ''} {', '.join(map(str, own))})"
        for host, own in by_host.items()
    )


def by_host(hosts: Mapping[int, str]) -> dict[str, list[int]]:
    """Return the ranks of each host."""
    found: dict[str, list[int]] = {}
    for rank, host in hosts.items():
        found.setdefault(host, []).append(rank)
    return found


def together(by_rank: Mapping[int, Finding], hosts: Mapping[int, str]) -> Finding:
    """Return one finding of what every rank found in the same check: the first rank's, or who found what is wrong."""
    first = next(iter(by_rank.values()))
    same = all(found == first for found in by_rank.values())
    facts = (
        first.facts
        if all(found.facts == first.facts for found in by_rank.values())
        else {"by_rank": {str(rank): found.facts for rank, found in by_rank.items()}}
    )
    status = worst(list(by_rank.values()))
    if same or status == "ok":
        return replace(first, facts=facts)
    groups: dict[str, list[int]] = {}
    for rank, found in by_rank.items():
        if found.status != "ok":
            groups.setdefault(found.text, []).append(rank)
    if len(groups) == 1 and len(next(iter(groups.values()))) == len(hosts):
        text = next(iter(groups))
    else:
        shown = [f"{where(ranks, hosts)}: {text}" for text, ranks in list(groups.items())[:_SHOWN]]
        text = " | ".join(shown) + (f" | and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else "")
    return Finding(status, text, facts, first.name)
