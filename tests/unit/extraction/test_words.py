"""Free text to words and mentions to words: nothing is lost, and mistakes say where the mention is."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmeup.errors import InputError
from promptmeup.extraction.words import find_mention, join_words, split_words

TEXT = "Ada met Adams and Ada at 0:3"


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in split_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # as Twitter-2015 has them
        (
            "RT @jonathanchait: How post-Katrina New",
            ["RT", "@jonathanchait", ":", "How", "post-Katrina", "New"],
        ),
        ("(@ Larkin Square, NY)", ["(", "@", "Larkin", "Square", ",", "NY", ")"]),
        ("see http://t.co/2A5bM9PDML now", ["see", "http://t.co/2A5bM9PDML", "now"]),
        ("#WILD is #7!", ["#WILD", "is", "#7", "!"]),
        ("our #Vice-President -", ["our", "#Vice-President", "-"]),
        ("RT@Gizmodo", ["RT", "@Gizmodo"]),
        ("it's 9/11 … U.S.", ["it", "'", "s", "9", "/", "11", "…", "U", ".", "S", "."]),
        ("@a_b snake_case", ["@a_b", "snake", "_", "case"]),
        # accents and variation selectors stay with what they belong to
        ("Beyonce\u0301s \u2764\ufe0f हिन्दी", ["Beyonce\u0301s", "\u2764\ufe0f", "हिन्दी"]),
        ("in\u00a0Port Alden\n\tnow", ["in", "Port", "Alden", "now"]),
        ("  ", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
def test_only_space_is_lost(text: str) -> None:
    spans = split_words(text)
    assert "".join(words(text)) == "".join(text.split())
    assert all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_joined_words() -> None:
    text, spans = join_words(["New York", "is", "big"])
    assert text == "New York is big"
    assert [text[start:end] for start, end in spans] == ["New York", "is", "big"]
    assert join_words([]) == ("", ())


@pytest.mark.parametrize(
    ("mention", "expected"),
    [
        ("Adams", (2, 3)),
        ("met Adams", (1, 3)),
        (" met ", (1, 2)),
        ("dam", (2, 3)),  # within a word: the word
        ("18:21", (4, 5)),
        ((18, 21), (4, 5)),
        ((2, 5), (0, 2)),  # touches two words
        ("0:3", (6, 9)),  # what stands in the text is text
    ],
)
def test_mentions(mention: str | tuple[int, int], expected: tuple[int, int]) -> None:
    assert find_mention(TEXT, split_words(TEXT), mention, name="head") == expected


@pytest.mark.parametrize(
    ("mention", "message"),
    [
        (
            "Ada",
            "head 'Ada' occurs 2 times in the text, at characters 0:3, 18:21; say which one by giving START:END",
        ),
        ("adams", "head 'adams' does not occur in 'Ada met Adams and Ada at 0:3'; did you mean 'Adams'?"),
        (
            "Eve",
            "does not occur in 'Ada met Adams and Ada at 0:3'; it must be spelt as there, or be START:END",
        ),
        ("5:99", "head 5:99 is no part of the text, whose characters are 0:28"),
        ((4, 4), "head 4:4 is no part of the text"),
        ((-3, 4), "head -3:4 is no part of the text"),
        ("3:4", "head 3:4 covers no word of"),
        (" ", "head is empty"),
    ],
)
def test_mistakes_of_mentions(mention: str | tuple[int, int], message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_mention(TEXT, split_words(TEXT), mention, name="head")
    assert message in str(caught.value)
