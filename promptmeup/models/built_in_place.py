"""What our transformers models share."""

from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel


class BuiltInPlace(PreTrainedModel):  # type: ignore[misc]
    """A model whose buffers that are not saved are what its constructor made them, after `from_pretrained` too.

    transformers constructs on the meta device and fills such buffers (BERT's positions, the CRF's rules, timm's tables)
    in a method that knows each kind of module; a model of many sources cannot have one.
    """

    def post_init(self) -> None:
        super().post_init()
        names = {name for name, _ in self.named_buffers()} - set(self.state_dict())
        self._unsaved = {name: self.get_buffer(name).clone() for name in names}

    @classmethod
    def get_init_context(cls, *arguments: Any, **named: Any) -> list[Any]:
        contexts = super().get_init_context(*arguments, **named)
        return [c for c in contexts if not (isinstance(c, torch.device) and c.type == "meta")]

    @classmethod
    def from_pretrained(cls, *arguments: Any, **named: Any) -> Self:
        found = super().from_pretrained(*arguments, **named)
        model = found[0] if isinstance(found, tuple) else found
        for name, value in model._unsaved.items():
            model.get_buffer(name).copy_(value)
        return found  # type: ignore[no-any-return]

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: modules initialise themselves, and what comes from elsewhere must stay."""
