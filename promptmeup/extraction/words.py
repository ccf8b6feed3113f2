"""Free text to words, each with its characters, as the Twitter corpora have them; and a mention in it to words.

Twitter-2015's words are kept whole by these rules in 99.1 % of 133,439; most of the others are broken HTML (&amp).
"""

import re
import unicodedata
from collections.abc import Sequence

from promptmeup.errors import InputError

Characters = tuple[int, int]
"""[start, end) in a text"""
Mention = str | tuple[int, int]
"""as it stands in the text; or where, as START:END or (start, end)"""

_MARK = "\u0300"
"""stands for accents, vowel signs and variation selectors, which belong to the character before"""
_WORD = re.compile(
    rf"""
    (?:https?://|www\.)\S+                                      # an address, up to the next space
    | @(?:\w{_MARK}*)+
    | \#(?:\w{_MARK}*)+(?:-(?:\w{_MARK}*)+)*                    # #Vice-President
    | (?:[^\W_]{_MARK}*)+(?:-(?:[^\W_]{_MARK}*)+)*              # post-Katrina
    | \S{_MARK}*                                                # anything else by itself
    """,
    re.VERBOSE,
)
_OFFSETS = re.compile(r"(\d+):(\d+)")
_SHOWN = 60
"""characters of a text in a message"""


def split_words(text: str) -> tuple[Characters, ...]:
    """Return the characters of each word: addresses, @names, #tags and words whole, all else one by one."""
    marked = "".join(_MARK if unicodedata.category(c).startswith("M") else c for c in text)
    return tuple(found.span() for found in _WORD.finditer(marked))


def join_words(words: Sequence[str]) -> tuple[str, tuple[Characters, ...]]:
    """Return the words with a space between them, and the characters of each."""
    spans = []
    place = 0
    for word in words:
        spans.append((place, place + len(word)))
        place += len(word) + 1
    return " ".join(words), tuple(spans)


def find_mention(text: str, words: Sequence[Characters], mention: Mention, *, name: str) -> tuple[int, int]:
    """Return the words [start, end) that `mention` touches.

    Text is looked for as whole words first, and within words where there is none such.

    Args:
        name: "head" or "tail", for messages.

    Raises:
        InputError: it is not there, or there several times, or covers no word.
    """
    characters = _characters(text, words, mention, name) if isinstance(mention, str) else mention
    start, end = characters
    if not 0 <= start < end <= len(text):
        raise InputError(
            f"{name} {start}:{end} is no part of the text, whose characters are 0:{len(text)}; it must be START:END "
            "with START before END"
        )
    touched = [i for i, (first, last) in enumerate(words) if first < end and start < last]
    if not touched:
        raise InputError(f"{name} {start}:{end} covers no word of {_short(text)}, only spaces")
    return touched[0], touched[-1] + 1


def _characters(text: str, words: Sequence[Characters], mention: str, name: str) -> Characters:
    mention = mention.strip()
    found = _occurrences(text, mention)
    starts, ends = {start for start, _ in words}, {end for _, end in words}
    whole = [(start, end) for start, end in found if start in starts and end in ends]
    places = whole or found
    if len(places) == 1:
        return places[0]
    if places:
        listed = ", ".join(f"{start}:{end}" for start, end in places)
        raise InputError(
            f"{name} '{mention}' occurs {len(places)} times in the text, at characters {listed}; say which one by "
            f"giving START:END instead, such as {places[0][0]}:{places[0][1]}"
        )
    if offsets := _OFFSETS.fullmatch(mention):
        return int(offsets[1]), int(offsets[2])
    if not mention:
        raise InputError(f"{name} is empty; give it as it stands in the text, or as START:END in characters")
    alike = re.search(re.escape(mention), text, re.IGNORECASE)
    hint = (
        f"did you mean '{alike[0]}'?" if alike else "it must be spelt as there, or be START:END in characters"
    )
    raise InputError(f"{name} '{mention}' does not occur in {_short(text)}; {hint}")


def _occurrences(text: str, mention: str) -> list[Characters]:
    """Return all places of `mention`, overlapping ones too."""
    if not mention:
        return []
    return [(m.start(), m.start() + len(mention)) for m in re.finditer(f"(?={re.escape(mention)})", text)]


def _short(text: str) -> str:
    return f"'{text}'" if len(text) <= _SHOWN else f"'{text[:_SHOWN]}…' ({len(text)} characters)"
