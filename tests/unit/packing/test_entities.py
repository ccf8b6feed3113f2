"""Entities and nouns of real captions, and the vocabulary counted from them."""

from pathlib import Path

import pytest
import spacy

from promptmeup.errors import WeightsError
from promptmeup.packing.entities import EntityConfig, EntityFinder, VocabularyCounter, entity_name, names_in
from promptmeup.prompts.vocabulary import read_entities
from promptmeup.records import Span

OBAMA = "President Barack Obama meets with senior advisors in the Oval Office on July 31 2011"


def test_entities_and_nouns_of_a_news_caption(finder: EntityFinder) -> None:
    ((entities, nouns),) = finder.find([OBAMA])
    assert ("Barack Obama", "PERSON") in {(span.text, span.label) for span in entities}
    assert not any("2011" in span.text for span in entities), "a date is nothing to see"
    assert [(span.text, span.label) for span in nouns] == [("advisors", "advisor")]
    for span in (*entities, *nouns):
        assert OBAMA[span.start : span.end] == span.text


def test_nouns_are_lemmas_without_those_inside_dates(finder: EntityFinder) -> None:
    ((_, nouns),) = finder.find(["Two dogs have run over the muddy fields for three years"])
    assert [span.label for span in nouns] == ["dog", "field"]


def test_each_text_gets_its_own_answer_in_order_however_often_it_comes(finder: EntityFinder) -> None:
    texts = [OBAMA, "A cat sleeps.", OBAMA, "", "Angela Merkel visits Paris.", "A cat sleeps."]
    together = list(finder.find(texts))
    assert together == [next(finder.find([text])) for text in texts]
    assert [span.text for span in together[4][0]] == ["Angela Merkel", "Paris"]
    assert together[3] == ((), ())


@pytest.mark.parametrize(
    "text", ["צילום: אדם הולך ברחוב", "\u202eright to left\u202c", "\x00\t\n", "🏃" * 50]
)
def test_any_text_is_read_and_spans_are_its_own_characters(finder: EntityFinder, text: str) -> None:
    ((entities, nouns),) = finder.find([text])
    assert all(text[span.start : span.end] == span.text for span in (*entities, *nouns))


def test_a_caption_as_long_as_a_book_is_cut_not_refused(finder: EntityFinder) -> None:
    text = "A dog barks. " * 100_000  # beyond spaCy's own limit of a million characters
    ((_, nouns),) = finder.find([text])
    assert {span.label for span in nouns} == {"dog"}


def test_an_absent_model_says_how_to_get_it() -> None:
    with pytest.raises(WeightsError, match=r"pip install 'promptmeup\[english\]'.*spacy download xx_none"):
        EntityFinder(EntityConfig(model="xx_none"))


def test_a_model_without_entities_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(WeightsError, match="it has no components"):
        EntityFinder(EntityConfig(model=str(tmp_path / "blank")))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("the White House", "White House"),
        ("The  United\nNations's", "United Nations"),
        ("Obama’s", "Obama"),
        ("“Hamlet”", "Hamlet"),
        ("Theresa May", "Theresa May"),
        ("St. Louis", "St. Louis"),
        ("'s", ""),
    ],
)
def test_entity_names_are_whole_and_plain(text: str, name: str) -> None:
    assert entity_name(text) == name


def spans(*pairs: tuple[str, str]) -> tuple[Span, ...]:
    return tuple(Span(0, len(text), text, label) for text, label in pairs)


def test_vocabulary_counts_captions_not_occurrences() -> None:
    counter = VocabularyCounter()
    first = spans(("Paris", "GPE"), ("Paris's", "GPE"), ("the Seine", "LOC")), spans(("dogs", "dog"))
    counter.add("1", names_in(first))
    counter.add("1", names_in(first))  # the same caption, shown with another image
    counter.add("2", names_in((spans(("Paris", "GPE")), spans(("dog", "dog"), ("dogs", "dog")))))
    assert counter.tsv() == "Paris\t2\tentity\ndog\t2\tnoun\nSeine\t1\tentity\n"


def test_spellings_of_one_name_are_one_line_that_the_prompts_can_read(tmp_path: Path) -> None:
    counter = VocabularyCounter()
    counter.add("1", names_in((spans(("Apple", "ORG")), spans(("apples", "apple")))))
    counter.add("2", names_in((spans(("APPLE", "ORG")), ())))
    counter.add("3", names_in((spans(("Apple", "ORG")), spans(("tree", "tree")))))
    (tmp_path / "entities.tsv").write_text(counter.tsv())
    assert counter.tsv().splitlines() == ["Apple\t3\tentity", "tree\t1\tnoun"]
    assert read_entities(tmp_path / "entities.tsv", min_count=1) == ("Apple", "tree")


def test_the_vocabulary_does_not_depend_on_the_order_of_captions(finder: EntityFinder) -> None:
    texts = [OBAMA, "Angela Merkel visits Paris.", "Two dogs run in Paris.", "A house with three dogs"]
    found = list(zip("1234", finder.find(texts), strict=True))
    counters = VocabularyCounter(), VocabularyCounter()
    for counter, order in zip(counters, (found, found[::-1]), strict=True):
        for caption_id, spans_found in order:
            counter.add(caption_id, names_in(spans_found))
    assert counters[0].tsv() == counters[1].tsv()
    assert counters[0].tsv().startswith("Paris\t2\tentity\ndog\t2\tnoun\n")
