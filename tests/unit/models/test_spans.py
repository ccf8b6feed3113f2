"""Groups of captions of about the same length."""

from hypothesis import given
from hypothesis import strategies as st

from promptmeup.models.spans import MOST, spans


@given(st.lists(st.integers(1, 64), min_size=1, max_size=300).map(sorted), st.integers(64, 70))
def test_groups_cover_the_captions_in_order(lengths: list[int], longest: int) -> None:
    found = spans(lengths, rows=len(lengths), longest=longest)
    assert sum(rows for rows, _ in found) == len(lengths)
    assert max(rows for rows, _ in found) - min(rows for rows, _ in found) <= 1
    start = 0
    for rows, length in found:
        group = lengths[start : start + rows]
        assert max(group) <= length <= longest
        assert length < max(group) + 8
        start += rows


@given(st.lists(st.integers(1, 64), min_size=64, max_size=64).map(sorted))
def test_their_number_depends_on_the_number_of_captions_alone(lengths: list[int]) -> None:
    """Or ranks would call layers differently often, and wait for each other for ever at ZeRO 3."""
    assert [rows for rows, _ in spans(lengths, rows=64, longest=64)] == [16] * 4


def test_few_rows_stay_together_and_many_are_cut_in_few_groups() -> None:
    assert spans([3, 4, 9], rows=3, longest=12) == [(3, 12)]
    assert spans([5] * 31, rows=31, longest=12) == [(31, 8)]
    assert len(spans([5] * 10_000, rows=10_000, longest=12)) == MOST
    assert spans(None, rows=10_000, longest=12) == [(10_000, 12)]
