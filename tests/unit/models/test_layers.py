"""Layers compiled, and layers that keep less: the same numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from promptmeup.errors import ConfigError
from promptmeup.models import layers
from promptmeup.models.alignment import AlignmentModel
from promptmeup.models.layers import Checkpointing, checkpoint_layers, compile_layers, transformer_layers
from tests.unit.models.support import LITE0, batch, tiny_model, tiny_text, tiny_vision


def _gradients(model: AlignmentModel) -> dict[str, Tensor]:
    torch.manual_seed(3)  # of dropout
    features = model(**batch(rows=4))
    torch.stack([value.square().sum() for value in features.values() if value.requires_grad]).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_checkpointed_layers_give_the_same_gradients(kind: Checkpointing) -> None:
    """To the bit, dropout too."""
    text = tiny_text(dropout=0.1)
    expected = _gradients(tiny_model(text=text).train())
    model = tiny_model(text=text).train()
    checkpoint_layers(model, kind)
    found = _gradients(model)
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys() & expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_compiled_layers_give_the_same_gradients() -> None:
    expected = _gradients(tiny_model().train())
    model = tiny_model().train()
    names = list(model.state_dict())
    compile_layers(model, backend="aot_eager")
    found = _gradients(model)
    assert list(model.state_dict()) == names
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max() + 1)
        )


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match=r"engine.compile needs a compiler .* set engine.compile=false"):
        compile_layers(tiny_model())


@pytest.mark.parametrize(
    ("vision", "count"),
    [
        (tiny_vision(), 2),
        (tiny_vision(kind="timm", architecture="vit_tiny_patch16_224", image_size=32), 12),
        (tiny_vision(kind="timm", weights=LITE0, image_size=64), 0),
        (tiny_vision(kind="timm", architecture="convnext_atto", image_size=64), 0),
    ],
)
def test_which_layers_there_are(vision: Any, count: int) -> None:
    model = tiny_model(vision=vision)
    assert model.fusion is not None
    assert len(transformer_layers(model)) == len(model.text.layers) + len(model.fusion.layers) + count
