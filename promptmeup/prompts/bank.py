"""Prompt banks: one unit vector a name, the mean over templates of the teacher's text vectors."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from promptmeup.config import Config, fingerprint
from promptmeup.errors import ShardError
from promptmeup.prompts.vocabulary import Vocabulary, VocabularyConfig
from promptmeup.records import Banks
from promptmeup.shard_format import write_atomically

BANKS_FILE = "banks.safetensors"

# Counted into the fingerprint: raise it when crops, resizing or rounding change the labels' values.
LABEL_VERSION = 1


class BankConfig(Config):
    """What the banks are made of."""

    vocabulary: VocabularyConfig = VocabularyConfig()
    batch: int = Field(default=256, ge=1)
    """sentences encoded at once"""


@torch.no_grad()
def build_bank(
    names: Sequence[str],
    templates: Sequence[str],
    encode: Callable[[Sequence[str]], Tensor],
    *,
    batch: int = 256,
) -> Tensor:
    """Return the bank [K, D], float32 on the CPU; row k is `names[k]`.

        bank_k = norm( 1/|templates| * sum over templates of norm(encode(template with name k)) )

    The mean of unit vectors is shorter than one, by more the less the templates agree. Normalised again,
    every name competes by its direction alone (prompt ensembling of CLIP, arXiv 2103.00020, 3.1.4).
    """
    assert names, "a bank without names"
    assert templates, "a bank without templates"
    rows = []
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        total_KD = torch.zeros(())
        for template in templates:
            vectors_KD = encode([template.replace("{}", name) for name in part]).float().cpu()
            assert vectors_KD.ndim == 2, f"{tuple(vectors_KD.shape)}: not a vector a sentence"
            assert len(vectors_KD) == len(part), f"{len(vectors_KD)} vectors for {len(part)} sentences"
            total_KD = total_KD + F.normalize(vectors_KD, dim=-1)
        rows.append(F.normalize(total_KD, dim=-1))
    return torch.cat(rows)


def build_banks(
    vocabulary: Vocabulary, encode: Callable[[Sequence[str]], Tensor], *, batch: int = 256
) -> Banks:
    """Return both banks: entities (compared with object crops), relations (with whole images)."""
    return Banks(
        entities_KD=build_bank(vocabulary.entities, vocabulary.entity_templates, encode, batch=batch),
        relations_KD=build_bank(vocabulary.relations, vocabulary.relation_templates, encode, batch=batch),
    )


def bank_fingerprint(
    teacher: str, vocabulary: Vocabulary, *, temperature: float, num_kept: int, crop_padding: float
) -> str:
    """Return 16 hex digits of all that the soft labels' values depend on besides the images.

    `teacher` is the teacher's own fingerprint; `temperature` the one really used.
    """
    return fingerprint(
        {
            "teacher": teacher,
            "vocabulary": asdict(vocabulary),
            "temperature": temperature,
            "num_kept": num_kept,
            "crop_padding": crop_padding,
            "version": LABEL_VERSION,
        }
    )


def save_banks(folder: Path, banks: Banks, *, corpus: str) -> None:
    """Write both banks into a folder of soft labels, with the fingerprint of the split they label."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"entities": banks.entities_KD.contiguous(), "relations": banks.relations_KD.contiguous()}
    write_atomically(folder / BANKS_FILE, save(tensors, metadata={"corpus": corpus}))


def load_banks(folder: Path, *, corpus: str) -> Banks:
    """Read the banks of a folder of soft labels, on the CPU.

    Raises:
        ShardError: no banks, a damaged file, or banks of another corpus than `corpus` (the manifest's
            fingerprint): the split was packed again after labelling.
    """
    path = folder / BANKS_FILE
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("corpus")
            banks = Banks(file.get_tensor("entities"), file.get_tensor("relations"))
    except FileNotFoundError as error:
        raise ShardError(f"{folder} holds no prompt banks ({BANKS_FILE}); run launch/label.py") from error
    except (OSError, SafetensorError) as error:
        raise ShardError(f"cannot read {path}: {error}; remove {folder} and run launch/label.py") from error
    if found != corpus:
        raise ShardError(
            f"{folder} labels the corpus {found}, but the split beside it is {corpus}: "
            "it was packed again; remove that folder and run launch/label.py"
        )
    return banks
