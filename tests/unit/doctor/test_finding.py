"""One line a check: its mark, what it found, who found it, and the exit code of all."""

import json

from promptmeup.doctor.finding import Finding, Report, failed, look, ok, together, warning, where
from promptmeup.errors import ShardError
from promptmeup.progress import spoken

HOSTS = {0: "node1", 1: "node1", 2: "node2", 3: "node2"}


def _raise(error: Exception) -> Finding:
    raise error


def test_an_error_is_a_finding() -> None:
    assert look("a", lambda: ok("fine", n=1)) == Finding("ok", "fine", {"n": 1}, "a")
    mistake = look("b", _raise, ShardError("gone;\n pack again"))
    assert mistake == Finding("failed", "gone; pack again", {}, "b")
    unexpected = look("c", _raise, ZeroDivisionError("division by zero"))
    assert unexpected.status == "failed"
    assert unexpected.text.startswith("ZeroDivisionError: division by zero")


def test_where_ranks_are() -> None:
    assert where([0, 2, 3], HOSTS) == "node1 (rank 0) and node2 (ranks 2, 3)"


def test_all_agree() -> None:
    assert together(dict.fromkeys(HOSTS, warning("slow", n=1)), HOSTS) == warning("slow", n=1)


def test_facts_that_differ_are_kept_by_rank() -> None:
    found = together({rank: ok(f"free {rank}", rank=rank) for rank in HOSTS}, HOSTS)
    assert found.status == "ok" and found.text == "free 0"
    assert found.facts["by_rank"]["3"] == {"rank": 3}


def test_who_differs_is_named() -> None:
    by_rank = {0: ok("there"), 1: ok("there"), 2: failed("not there"), 3: failed("not there")}
    found = together(by_rank, HOSTS)
    assert (found.status, found.text) == ("failed", "node2 (ranks 2, 3): not there")
    by_rank = {rank: failed(f"broken {rank}") for rank in HOSTS}
    assert together(by_rank, HOSTS).text.endswith("node2 (rank 2): broken 2 | and 1 more")


def test_sizes_as_a_person_says_them() -> None:
    assert [spoken(n) for n in (12, 2_500, 3e6, 7.25e9)] == ["12 bytes", "2.5 kB", "3.0 MB", "7.2 GB"]


def test_report() -> None:
    findings = [look("disk", ok, "66 GB free"), look("run folder", warning, "hm; do that")]
    fine = Report(tuple(findings), {0: "node1"}, 1)
    assert fine.exit_code == 0 and fine.status == "warning"
    assert str(fine).splitlines() == [
        "ok      disk        66 GB free",
        "warning run folder  hm; do that",
        "1 ok, 1 warning, 0 failed: nothing stands in the way",
    ]
    bad = Report((*findings, look("weights", failed, "no", key="k")), {0: "node1"}, 2)
    assert bad.exit_code == 1
    assert str(bad).splitlines()[2:] == [
        "FAILED  weights     no",
        "1 ok, 1 warning, 1 failed: a run would not get through",
    ]
    values = json.loads(json.dumps(bad.as_json()))
    assert (values["status"], values["ranks"], values["hosts"]) == ("failed", 2, {"0": "node1"})
    assert values["checks"][2] == {"name": "weights", "status": "failed", "text": "no", "facts": {"key": "k"}}
