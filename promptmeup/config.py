"""YAML file + ``a.b=c`` overrides -> one frozen, checked pydantic model.

Every component keeps its own `Config` subclass beside its code; a command composes them. Values are
checked in pydantic's strict JSON mode, so that ``"8"`` is not an integer and ``true`` is not ``1``. All
mistakes are reported at once, each with the file or override, the key, the value and the way out.
"""

import argparse
import difflib
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from promptmeup.errors import ConfigError, UserError


class Config(BaseModel):
    """Base of all configuration models: frozen, unknown keys refused."""

    # defaults are not validated: strict JSON mode would refuse a default Path, which is no JSON
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads ``1e-4`` as a number (YAML 1.2)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
# Dates stay text: a configuration has no dates, and JSON has none either.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        if key in result:
            raise ConfigError(
                f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: "
                f"duplicate key '{key}': keep one of the two"
            )
        result[key] = loader.construct_object(value_node, deep=True)
    return result


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _parse_yaml(text: str, name: str) -> Any:
    loader = _Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _apply_override(data: dict[str, Any], text: str) -> tuple[str, ...]:
    """Set one ``a.b=c`` in `data` and return its key path."""
    name, separator, value = text.partition("=")
    parts = tuple(name.split("."))
    if not separator or not all(parts):
        raise ConfigError(f"override '{text}': write it as key=value, for example seed=1 or optim.lr=1e-4")
    place = data
    for part in parts[:-1]:
        inner = place.get(part)
        if not isinstance(inner, dict):
            inner = place[part] = {}
        place = inner
    place[parts[-1]] = _parse_yaml(value, f"override '{text}'")
    return parts


def _submodels(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _submodels(argument)


def _walk(schema: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], set[str]]:
    """Return the key path that `location` means to a user, and the names of the fields allowed there.

    pydantic puts a union's tag into the location; it is no key, so it is left out.
    """
    path, models = [], [schema]
    for part in location:
        fields = [m.model_fields[str(part)] for m in models if part in m.model_fields]
        is_tag = not fields and any(
            part == m.model_fields["kind"].default for m in models if "kind" in m.model_fields
        )
        if is_tag:
            models = [m for m in models if m.model_fields["kind"].default == part]
            continue
        path.append(str(part))
        models = [inner for field in fields for inner in _submodels(field.annotation)] or models
    return path, {name for model in models for name in model.model_fields}


def _all_paths(schema: type[BaseModel], prefix: str = "") -> list[str]:
    paths = []
    for name, field in schema.model_fields.items():
        paths.append(prefix + name)
        for inner in _submodels(field.annotation):
            paths += _all_paths(inner, f"{prefix}{name}.")
    return paths


def _hint(schema: type[BaseModel], location: tuple[str | int, ...]) -> str:
    """Return the closest valid key: first among siblings, then anywhere in the schema."""
    wrong = str(location[-1])
    path, siblings = _walk(schema, location[:-1])
    close = difflib.get_close_matches(wrong, sorted(siblings), n=1)
    prefix = ".".join(path)
    if close:
        return f"did you mean '{prefix + '.' if prefix else ''}{close[0]}'?"
    everywhere = _all_paths(schema)
    full = ".".join([*path, wrong])
    close = [path for path in everywhere if path.rsplit(".", 1)[-1] == wrong]
    close = close or difflib.get_close_matches(full, everywhere, n=1, cutoff=0.7)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid here: {', '.join(sorted(siblings))}"


def _describe(
    error: ValidationError, schema: type[BaseModel], file: str, overrides: dict[tuple[str, ...], str]
) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        location = problem["loc"]
        names = tuple(_walk(schema, location)[0])
        # the last override that set this key, a part of it, or what it is a part of
        common = {path: min(len(path), len(names)) for path in overrides}
        set_by = [overrides[p] for p, n in common.items() if n and p[:n] == names[:n]]
        origin = f"override '{set_by[-1]}'" if set_by else file
        key = ".".join(names) or "(top level)"
        if problem["type"] == "extra_forbidden":
            text = f"unknown key '{key}' (value {problem['input']!r}): {_hint(schema, location)}"
        elif problem["type"] == "missing":
            text = f"'{key}' is missing: set it in the file or give {key}=VALUE on the command line"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            text = f"'{key}' = {problem['input']!r}: {message[:1].lower()}{message[1:]}"
        lines.append(f"  {origin}: {text}")
    count = len(lines)
    return f"{count} configuration error{'s' if count > 1 else ''}:\n" + "\n".join(lines)


def load(schema: type[C], path: Path | None, overrides: Sequence[str] = ()) -> C:
    """Read `path`, apply `overrides` in order and return the checked configuration.

    Raises:
        ConfigError: naming every mistake with its file or override, key, value and closest valid key.
    """
    file = str(path) if path else "command line"
    data: Any = {}
    if path is not None:
        try:
            data = _parse_yaml(path.read_text(encoding="utf-8"), file)
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text: {error.reason}") from error
        data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: the top level must be 'key: value' lines, not a {type(data).__name__}")
    origins = {_apply_override(data, text): text for text in overrides}
    try:
        return schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ConfigError(_describe(error, schema, file, origins)) from error


def dump(config: BaseModel) -> str:
    """Return the whole resolved configuration as YAML that `load` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def fingerprint(value: BaseModel | dict[str, Any] | list[Any]) -> str:
    """Return 16 hex digits that change whenever a value in `value` (JSON-able) changes."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Plan = Callable[[C, int | None], str]
"""What a command would do, in words and numbers, on this many ranks (None: as many as the launcher started, or one).
It reads what is there, and writes, fetches and starts nothing."""


def command(
    schema: type[C],
    main: Callable[[C], None],
    argv: Sequence[str] | None = None,
    *,
    plan: Plan[C] | None = None,
) -> None:
    """Run `main` with the configuration that the command line names: ``--config FILE a.b=c ...``.

    With ``--dry-run`` the resolved configuration and `plan`'s text are printed instead, on the first rank alone.

    Mistakes of the user are printed without a traceback; the exit code is the error's own (2 for the
    configuration, 1 otherwise). `main`'s docstring is the command's help.
    """
    parser = argparse.ArgumentParser(
        description=main.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that replace the file's")
    add_dry_run(parser)
    # The deepspeed launcher adds --local_rank=N to every process; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(dry_run_alone(sys.argv[1:] if argv is None else argv))
    with user_errors():
        config = load(schema, arguments.config, arguments.overrides)
        if arguments.dry_run is None:
            main(config)
        elif is_first_rank():
            print(dump(config))
            if plan is not None:
                print(plan(config, arguments.dry_run or None))


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add ``--dry-run`` and ``--dry-run=RANKS``: None without it, 0 where no number is given."""
    parser.add_argument(
        "--dry-run",
        type=_ranks,
        metavar="RANKS",
        help="show the resolved configuration and what would be done (with --dry-run=8, on 8 ranks), and do nothing",
    )


def dry_run_alone(argv: Sequence[str]) -> list[str]:
    """Return `argv` in which ``--dry-run`` takes no other argument for its number."""
    return ["--dry-run=0" if text == "--dry-run" else text for text in argv]


def _ranks(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no number of ranks: write --dry-run or --dry-run=8")
    return int(text)


def is_first_rank() -> bool:
    """Whether a launcher started this process as its first, or nobody did."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


@contextmanager
def user_errors() -> Iterator[None]:
    """Print a mistake of the user without a traceback, and leave with the error's own exit code."""
    try:
        yield
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
