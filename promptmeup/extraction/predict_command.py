"""What launch/predict.py does: one sentence from the command line, or a file of them, to a table or JSON.

A line of the input is {"id", "text" or "words", "image", "head", "tail"}. `image` is relative to the file's folder,
or absolute, or null. `head` and `tail` are text, "START:END", or [start, end]: characters of "text", and words of
"words". "boxes" are as in corpora/boxes.py, "crops" paths like `image`; further keys are carried along. A line of the
output is the input's with

    "text", "words"             text made of words has a space between them
    "entities"                  [{"start", "end", "text", "type", "score", "words"}], or
    "relation", "score", "probabilities", "head_span", "tail_span"      spans as {"start", "end", "text", "words"}
    "has_image", "image_error"  whether the model saw the photo, and why not, or not a crop, where one is named
    "cut_words"                 words that it did not see

where a key that the input has already, with another value, is kept under "given": {"relation": …}.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from promptmeup.corpora.boxes import read_box
from promptmeup.corpora.json_files import is_text, read_json_lines
from promptmeup.corpora.post_files import is_words
from promptmeup.errors import ConfigError, InputError
from promptmeup.extraction.predict import Entities, Extractor, FoundRelation, Query
from promptmeup.progress import Progress
from promptmeup.tracking.console import table

_DECIMALS = 6
_SHOWN = 5
"""of damaged lines in a message, and of relations in a table"""


@dataclass(frozen=True)
class Line:
    """A line of the input."""

    place: str
    """its number, for messages"""
    fields: dict[str, Any]
    query: Query


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags of the command line; argparse says what is wrong with them and leaves."""
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description="Find named entities in a sentence and its photo, or the relation between two mentions in it.",
        epilog="FILE holds JSON lines such as "
        '{"id": "1", "text": "Ada in London", "image": "photos/1.jpg", "head": "Ada", "tail": "London"}; '
        '"words": ["Ada", "in", "London"] in the place of "text" are taken as they are.',
    )
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="fine-tuned: RUN/best, or RUN"
    )
    parser.add_argument("--text", metavar="TEXT", help="the sentence")
    parser.add_argument("--image", type=Path, metavar="PHOTO", help="its photo; without one the text decides")
    mention = "as it stands in TEXT, or START:END in characters"
    parser.add_argument("--head", metavar="MENTION", help=f"for relations: {mention}")
    parser.add_argument("--tail", metavar="MENTION", help="for relations: likewise")
    parser.add_argument("--json", action="store_true", help="print JSON in the place of a table")
    parser.add_argument("--input", type=Path, metavar="FILE", help="JSON lines, in the place of --text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON lines; needed with --input")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="sentences at once (default 32)")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be read and written, and do nothing"
    )
    flags = parser.parse_args(argv)
    single = [f"--{name}" for name in ("text", "image", "head", "tail") if getattr(flags, name) is not None]
    if flags.input is not None and (single or flags.json):
        parser.error(f"--input brings all sentences: leave {', '.join(single) or '--json'} out")
    if (flags.input is None) != (flags.output is None):
        parser.error("--input and --output go together")
    if flags.input is None and flags.text is None:
        parser.error("give --text TEXT, or --input FILE with --output FILE")
    if (flags.head is None) != (flags.tail is None):
        parser.error("--head and --tail go together")
    if flags.batch < 1:
        parser.error(f"--batch is {flags.batch}, it must be at least 1")
    return flags


def run(flags: argparse.Namespace) -> None:
    """Predict and print or write.

    Raises:
        UserError: a file, a line, a mention or the model cannot be used.
    """
    if flags.dry_run:
        from promptmeup.extraction.dry_run import plan_prediction  # knows of training, which takes seconds

        print(plan_prediction(flags))
        return
    if flags.input is not None:
        lines = read_lines(flags.input)  # before the model: mistakes are said at once
        extractor = Extractor.load(flags.model, warn=_warn)
        predict_file(extractor, lines, flags.output, source=flags.input, batch=flags.batch)
        return
    extractor = Extractor.load(flags.model, warn=_warn)
    query = Query(flags.text, flags.image, flags.head, flags.tail)
    if extractor.task == "relations":
        if query.head is None:
            raise ConfigError(f"the model in {extractor.folder} finds relations: give --head and --tail")
        found: Entities | FoundRelation = extractor.relation(
            query.text, head=query.head, tail=query.tail or "", image=query.image
        )
    else:
        if query.head is not None:
            raise ConfigError(f"the model in {extractor.folder} finds entities: leave --head and --tail out")
        found = extractor.entities(query.text, image=query.image)
    print(json.dumps(as_json(found), ensure_ascii=False) if flags.json else as_table(found))


def predict_file(
    extractor: Extractor, lines: Sequence[Line], output: Path, *, source: Path, batch: int
) -> None:
    """Write a line for each of `lines`; the file has its name only once it is whole.

    Raises:
        InputError: lines have no head or tail, or they are not in the text.
        ConfigError: the output cannot be written.
    """
    if output.exists() and output.samefile(source):
        raise ConfigError(f"--output {output} is the input; write to another file")
    if extractor.task == "relations":
        _require_mentions(extractor, lines, source)
    images = unseen = uncropped = cut = 0
    with _whole_file(output) as file, Progress("predict", unit="sentences", total=len(lines)) as bar:
        for start in range(0, len(lines), batch):
            part = lines[start : start + batch]
            for line, found in zip(part, _predict(extractor, part, batch), strict=True):
                file.write(_line(merged(line.fields, as_json(found))) + "\n")
                images += found.has_image
                unseen += found.image_error is not None and not found.has_image
                uncropped += found.image_error is not None and found.has_image
                cut += found.cut_words > 0
            file.flush()
            bar.advance(len(part), **({"unreadable_images": unseen} if unseen else {}))
    print(f"wrote {output}: {len(lines)} sentences, {images} with their photo", file=sys.stderr)
    if unseen:
        print(f"{unseen} photos were not seen: the text alone decided; see image_error", file=sys.stderr)
    if uncropped:
        print(f"{uncropped} photos were seen without some of their crops; see image_error", file=sys.stderr)
    if cut:
        print(f"{cut} sentences are too long for the model; see cut_words", file=sys.stderr)


def _line(fields: dict[str, Any]) -> str:
    """Return JSON in UTF-8; half an emoji, as in tweets that were cut, has no UTF-8 and is written as its escape."""
    text = json.dumps(fields, ensure_ascii=False)
    return text if is_text(text) else json.dumps(fields)


def _predict(extractor: Extractor, lines: Sequence[Line], batch: int) -> list[Entities | FoundRelation]:
    queries = [line.query for line in lines]
    if extractor.task == "entities":
        return list(extractor.entities_batch(queries, batch=batch))
    return list(extractor.relations_batch(queries, batch=batch))


def read_lines(path: Path) -> list[Line]:
    """Return the lines of an input file.

    Raises:
        CorpusError: the file is absent or unreadable.
        InputError: lines are damaged; it names them.
    """
    lines, wrong = [], []
    for number, fields in read_json_lines(path, missing="--input names it"):
        place = f"line {number}"
        try:
            lines.append(Line(place, fields, _query(fields, path.parent)))
        except InputError as error:
            wrong.append(f"{place}: {error}")
    _require_none(wrong, path)
    return lines


def _require_mentions(extractor: Extractor, lines: Sequence[Line], path: Path) -> None:
    wrong = []
    for line in lines:
        try:
            extractor.mentions(line.query)
        except InputError as error:
            wrong.append(f"{line.place}: {error}")
    _require_none(wrong, path)


def _require_none(wrong: Sequence[str], path: Path) -> None:
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        count = "1 line" if len(wrong) == 1 else f"{len(wrong)} lines"
        raise InputError(
            "\n  ".join(
                [f"{path}: {count} cannot be used, so nothing was predicted:", *wrong[:_SHOWN], *more]
            )
        )


def _query(fields: Any, folder: Path) -> Query:
    if not isinstance(fields, dict):
        raise InputError("expected a JSON object")
    text, words, image = (fields.get(key) for key in ("text", "words", "image"))
    if (text is None) == (words is None):
        raise InputError(f'expected either "text" or "words"; its keys are {", ".join(fields) or "none"}')
    if text is not None and not is_text(text):
        _refuse("text", "text", text)
    if words is not None and not is_words(words):
        _refuse("words", "a list of words, none of them empty", words)
    if image is not None and not _is_path(image):
        _refuse("image", "a path, or null", image)
    crops = fields.get("crops") or []
    if not (isinstance(crops, list) and all(map(_is_path, crops))):
        _refuse("crops", "a list of paths", crops)
    head, tail = (_mention(fields, key) for key in ("head", "tail"))
    entries = fields.get("boxes")
    boxes = [read_box(entry) for entry in entries] if isinstance(entries, list) else []
    if entries is not None and (not isinstance(entries, list) or None in boxes):
        _refuse("boxes", "a list of objects with numbers x0 < x1, y0 < y1, score, and a text label", entries)
    return Query(
        text if isinstance(text, str) else tuple(words or ()),
        None if image is None else folder / image,
        head,
        tail,
        None if entries is None else tuple(box for box in boxes if box is not None),
        tuple(folder / crop for crop in crops),
    )


def _is_path(value: Any) -> bool:
    return is_text(value) and bool(value) and "\0" not in value


def _mention(fields: dict[str, Any], key: str) -> Any:
    value = fields.get(key)
    if isinstance(value, list) and len(value) == 2 and all(type(place) is int for place in value):
        return tuple(value)
    if value is not None and not is_text(value):
        _refuse(key, 'text, "START:END" or [start, end]', value)
    return value


def _refuse(key: str, expected: str, value: object) -> NoReturn:
    raise InputError(f'"{key}" must be {expected}; this is {ascii(value)[:100]}')


def as_json(found: Entities | FoundRelation) -> dict[str, Any]:
    """Return what is found as JSON values, probabilities with 6 decimals."""
    about = {
        "has_image": found.has_image,
        "image_error": found.image_error,
        "cut_words": found.cut_words,
    }
    sentence = {"text": found.text, "words": list(found.words)}
    if isinstance(found, Entities):
        entities = [asdict(entity) | {"score": round(entity.score, _DECIMALS)} for entity in found]
        return sentence | {"entities": [_plain(entity) for entity in entities]} | about
    return (
        sentence
        | {
            "relation": found.relation,
            "score": round(found.probability, _DECIMALS),
            "probabilities": {name: round(p, _DECIMALS) for name, p in found.probabilities.items()},
            "head_span": _plain(asdict(found.head)),
            "tail_span": _plain(asdict(found.tail)),
        }
        | about
    )


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def merged(fields: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the input's fields and what is found; what the input had in its place is kept under "given"."""
    given = {key: value for key, value in fields.items() if key in found and value != found[key]}
    return fields | found | ({"given": given} if given else {})


def as_table(found: Entities | FoundRelation) -> str:
    """Return what is found as text for people."""
    lines = []
    if isinstance(found, Entities):
        rows = [
            {
                "entity": " ".join(entity.text.split()),
                "type": entity.type,
                "characters": f"{entity.start}:{entity.end}",
                "score": _percent(entity.score),
            }
            for entity in found
        ]
        lines.append(table(rows) if rows else "no entities found")
    else:
        ends = [
            {"of": name, "mention": " ".join(span.text.split()), "characters": f"{span.start}:{span.end}"}
            for name, span in (("head", found.head), ("tail", found.tail))
        ]
        ranked = list(found.probabilities.items())
        lines += [table(ends), ""]
        lines.append(table([{"relation": name, "probability": _percent(p)} for name, p in ranked[:_SHOWN]]))
        if len(ranked) > _SHOWN:
            lines.append(f"and {len(ranked) - _SHOWN} less probable ones (all with --json)")
    lines += ["", "seen with its photo" if found.has_image else "the text alone was seen, no photo"]
    if found.cut_words:
        lines.append(f"{found.cut_words} of {len(found.words)} words were cut off: the sentence is too long")
    return "\n".join(lines)


def _percent(probability: float) -> str:
    return f"{100 * probability:5.1f} %"


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[str]]:
    """Give a file that takes the name `path` at the end; until then, and if something fails, it is PATH.partial."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        print(f"\nstopped; the lines that were done are in {partial}", file=sys.stderr)
        sys.exit(130)


def _warn(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
