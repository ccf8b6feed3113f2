"""Files of names and templates: what is read, what is refused and how the message helps."""

from pathlib import Path

import pytest

from promptmeup.errors import ConfigError
from promptmeup.prompts.vocabulary import (
    Vocabulary,
    VocabularyConfig,
    read_entities,
    read_relations,
    read_stop_list,
    read_templates,
    read_vocabulary,
)

PROMPTS = Path(__file__).parents[3] / "configs" / "prompts"


def written(folder: Path, text: str) -> Path:
    path = folder / "file.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_methods_templates():
    assert read_templates(PROMPTS / "entity_templates.txt") == (
        "This is an image of {}.",
        "An image of {} is shown here",
    )
    assert read_templates(PROMPTS / "relation_templates.txt") == (
        "This image shows the relation of {}.",
        "The relation {} is shown in this image",
        "The relation between the objects in the image is {}",
    )


def test_the_relation_list_is_long_and_keeps_names_of_many_words():
    # the public release cut every name at its first space
    names = read_relations(PROMPTS / "relations.tsv")
    assert len(names) >= 300
    assert {"spouse", "place of birth", "chief executive officer", "member of sports team"} <= set(names)
    assert sum(" " in name for name in names) > 100
    assert "father" in names[:3]


def test_templates_skip_comments_and_blank_lines(tmp_path):
    path = written(tmp_path, "# ours\n\nA {} here\r\n  a photo of {}  \n")
    assert read_templates(path) == ("A {} here", "a photo of {}")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("A {}\nno placeholder\n", 2, "0 placeholders"),
        ("A {} and {}\n", 1, "2 placeholders"),
        ("A {0}\n", 1, "0 placeholders"),
        ("A {}\n# c\na {}\n", 3, "line 1"),
    ],
)
def test_bad_templates_are_refused_with_the_line(tmp_path, text, line, says):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as error:
        read_templates(path)
    assert f"{path}:{line}:" in str(error.value)


def test_a_file_without_templates_or_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no template: .*'An image of {}\.'"):
        read_templates(written(tmp_path, "# nothing\n"))
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.txt: No such file"):
        read_templates(tmp_path / "absent.txt")


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Málaga {}".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_templates(path)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("P1\ta\nP2\t\n", 2, "P2 has an empty label"),
        ("P1\ta\nP2\t \tnote\n", 2, "empty label"),
        ("P1\ta\nP2\tb\nP3\tA\n", 3, "relation 'A' is in line 1"),
        ("P1\ta\nP1\tb\n", 2, "property 'P1' is in line 1"),
        ("P1 a\n", 1, "tabs"),
        ("Q1\ta\n", 1, "P-id"),
        ("P1\ta\tb\tc\n", 1, "note"),
    ],
)
def test_bad_relations_are_refused_with_the_line(tmp_path, text, line, says):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as error:
        read_relations(path)
    assert f"{path}:{line}:" in str(error.value)


def test_relations_in_the_files_order(tmp_path):
    path = written(tmp_path, "# source\nP26\tspouse\tpeople\nP19\tplace of birth\n")
    assert read_relations(path) == ("spouse", "place of birth")
    with pytest.raises(ConfigError, match="1 relations left"):
        read_relations(written(tmp_path, "P26\tspouse\n"))


ENTITIES = "New York City\t9\tentity\ndog\t7\tnoun\n#MeToo\t7\tentity\nice cream\t3\tnoun\nrare\t1\tnoun\n"


def test_entities_are_whole_frequent_and_ordered(tmp_path):
    path = written(tmp_path, ENTITIES)
    assert read_entities(path) == ("New York City", "dog", "#MeToo", "ice cream")
    assert read_entities(path, size=2) == ("New York City", "dog")
    assert read_entities(path, min_count=1)[-1] == "rare"
    assert read_entities(path, kinds=("noun",)) == ("dog", "ice cream")


def test_entities_are_ordered_by_count_even_after_a_users_edit(tmp_path):
    path = written(tmp_path, "b\t2\tnoun\na\t2\tnoun\nc\t5\tnoun\n")
    assert read_entities(path) == ("c", "b", "a")
    assert read_entities(path, size=2) == ("c", "b")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a\t3\tnoun\n\t2\tnoun\n", 2, "empty name"),
        ("Apple\t3\tentity\nb\t2\tnoun\napple\t2\tnoun\n", 3, "'apple' is in line 1"),
        ("a b 3\n", 1, "name, count and kind"),
        ("a\tmany\tnoun\n", 1, "count"),
        ("a\t3\tverb\n", 1, "kind"),
    ],
)
def test_bad_entities_are_refused_with_the_line(tmp_path, text, line, says):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as error:
        read_entities(path)
    assert f"{path}:{line}:" in str(error.value)


def test_too_few_entities_say_what_to_lower(tmp_path):
    with pytest.raises(ConfigError, match=r"0 of 5 names left.*lower min_count \(now 50\)"):
        read_entities(written(tmp_path, ENTITIES), min_count=50)


def test_the_vocabulary_takes_the_packed_entities_unless_the_user_names_others(tmp_path):
    packed = written(tmp_path, ENTITIES)
    own = tmp_path / "own.tsv"
    own.write_text("cat\t5\tnoun\nhorse\t5\tnoun\n")
    paths = {
        "relations": PROMPTS / "relations.tsv",
        "entity_templates": PROMPTS / "entity_templates.txt",
        "relation_templates": PROMPTS / "relation_templates.txt",
    }
    found = read_vocabulary(VocabularyConfig(size=3, **paths), entities=packed)
    assert found.entities == ("New York City", "dog", "#MeToo")
    other = read_vocabulary(VocabularyConfig(entities=own, **paths), entities=packed)
    assert other.entities == ("cat", "horse")
    assert found.relations == other.relations
    assert found.fingerprint != other.fingerprint


def test_names_of_the_stop_list_are_never_asked_for(tmp_path):
    packed = written(tmp_path, "Photo\t9\tnoun\ndog\t5\tnoun\nphoto album\t4\tnoun\n")
    stop = tmp_path / "stop.txt"
    stop.write_text("# words for the photo\nPHOTO\n")
    assert read_stop_list(stop) == {"photo"}
    assert read_entities(packed, stop_names=read_stop_list(stop)) == ("dog", "photo album")
    stop.write_text("photo\nPhoto\n")
    with pytest.raises(ConfigError, match=r"name 'Photo' is in line 1 already"):
        read_stop_list(stop)
    with pytest.raises(ConfigError, match="cannot read"):
        read_stop_list(tmp_path / "absent.txt")
    ours = read_stop_list(PROMPTS / "stop_names.txt")
    assert {"photo", "left", "day"} <= ours
    assert not {"man", "dog", "president", "street"} & ours


def test_the_fingerprint_sees_every_part_and_the_order():
    vocabulary = Vocabulary(("a", "b"), ("r", "s"), ("{}",), ("{}.",))
    others = [
        Vocabulary(("b", "a"), ("r", "s"), ("{}",), ("{}.",)),
        Vocabulary(("a", "b"), ("r", "t"), ("{}",), ("{}.",)),
        Vocabulary(("a", "b"), ("r", "s"), ("{}!",), ("{}.",)),
        Vocabulary(("a", "b"), ("r", "s"), ("{}",), ("{}",)),
    ]
    assert len({v.fingerprint for v in [vocabulary, *others]}) == 5
    assert vocabulary.fingerprint == Vocabulary(("a", "b"), ("r", "s"), ("{}",), ("{}.",)).fingerprint
