"""The fine-tuned models: losses, transformers' way of saving and loading, the CRF's tags."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification

from promptmeup.extraction.folder import load_finetuned
from promptmeup.models.extraction import EntityModel, RelationModel
from tests.support.extraction_models import TAGS, save_tiny

B, L = 4, 8


def inputs(task: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    mask_BL = torch.ones(B, L, dtype=torch.bool)
    mask_BL[0, 5:] = False
    found = {
        "input_ids": torch.randint(1000, 2000, (B, L)),
        "attention_mask": mask_BL,
        "pixel_values": torch.randn(B, 3, 32, 32),
        "image_mask": torch.tensor([True, False, True, True]),
    }
    if task == "relations":
        return found | {"marker_positions": torch.tensor([[1, 3], [2, 1], [4, 2], [1, 4]])}
    words_BL = mask_BL.clone()
    words_BL[:, 0] = False
    words_BL[1, 3] = False
    return found | {"word_mask": words_BL}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("finetuned")
    return {task: save_tiny(root / task, task, vision=True) for task in ("entities", "relations")}


@torch.no_grad()
def test_entity_loss_is_the_chains_and_weighs_rows(folders: dict[str, Path]) -> None:
    model = load_finetuned(folders["entities"]).model
    assert isinstance(model, EntityModel)
    given = inputs("entities")
    tags_BL = torch.where(given["word_mask"], torch.randint(0, 2, (B, L)) * 3, -100)
    output = model(**given, labels=tags_BL)
    loss_B = -model.crf(output.logits, tags_BL, given["word_mask"])
    torch.testing.assert_close(output.loss, loss_B.mean())
    weights_B = torch.tensor([0.0, 0.5, 0.5, 0.0])
    weighted = model(**given, labels=tags_BL, weights=weights_B).loss
    torch.testing.assert_close(weighted, loss_B[1:3].mean())


@torch.no_grad()
def test_without_labels_tags_keep_to_bio_and_lie_at_words(folders: dict[str, Path]) -> None:
    model = load_finetuned(folders["entities"]).model
    given = inputs("entities")
    output = model(**given)
    assert (output.tags[~given["word_mask"]] == -1).all()
    decoded = model.crf.decode(output.logits, given["word_mask"])
    assert [output.tags[row][given["word_mask"][row]].tolist() for row in range(B)] == decoded
    for row in decoded:
        names = [TAGS[tag] for tag in row]
        for before, after in zip(["O", *names], names, strict=False):
            assert not after.startswith("I-") or before[2:] == after[2:]


@torch.no_grad()
def test_relation_reads_the_two_start_markers(folders: dict[str, Path]) -> None:
    model = load_finetuned(folders["relations"]).model
    assert isinstance(model, RelationModel)
    given = inputs("relations")
    output = model(**given, labels=torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(
        output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 3]))
    )
    swapped = model(**given | {"marker_positions": given["marker_positions"].flip(1)})
    assert (swapped.logits - output.logits).abs().max() > 1e-3, "head and tail are two things"


@pytest.mark.parametrize("task", ["entities", "relations"])
def test_transformers_loads_it_whole(folders: dict[str, Path], task: str) -> None:
    own = load_finetuned(folders[task]).model
    found = AutoModel.from_pretrained(folders[task], trust_remote_code=False).eval()
    assert type(found) is type(own)
    for name, value in own.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    unsaved = {name for name, _ in own.named_buffers()} - set(own.state_dict())
    assert unsaved, "positions and the CRF's rules are not saved"
    for name in unsaved:
        assert torch.equal(found.get_buffer(name), own.get_buffer(name)), name
    with torch.no_grad():
        assert torch.equal(found(**inputs(task)).logits, own(**inputs(task)).logits)
    config = AutoConfig.from_pretrained(folders[task])
    assert config.labels == tuple(own.config.id2label.values())
    if task == "entities":
        assert isinstance(AutoModelForTokenClassification.from_pretrained(folders[task]), EntityModel)


@pytest.mark.parametrize(
    "imports",
    [
        "import promptmeup; from transformers import AutoModel",
        "from transformers import AutoModel; import promptmeup",
        "import promptmeup.models.text; from transformers import AutoModel",
    ],
)
def test_in_whatever_order_they_are_imported(folders: dict[str, Path], imports: str) -> None:
    pytest.importorskip("wrapt", reason="without it AutoModel learns of ours from promptmeup.models alone")
    code = f"{imports}; print(type(AutoModel.from_pretrained({str(folders['entities'])!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["EntityModel"], done.stderr


def test_importing_the_package_imports_no_torch() -> None:
    code = "import promptmeup, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@torch.no_grad()
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_relation_model_keeps_its_head(tmp_path: Path, head: str) -> None:
    save_tiny(tmp_path / "one", "relations", vision=True, head=head)
    found = AutoModel.from_pretrained(tmp_path / "one").eval()
    assert found.config.head == head
    assert sum(isinstance(layer, torch.nn.Linear) for layer in found.classifier) == (
        1 if head == "linear" else 2
    )
    own = load_finetuned(tmp_path / "one").model
    assert torch.equal(found(**inputs("relations")).logits, own(**inputs("relations")).logits)
