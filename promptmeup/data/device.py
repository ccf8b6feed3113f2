"""Batches on their way to an accelerator: copied beside the computation, colours changed there."""

from collections.abc import Iterator
from dataclasses import fields

import torch

from promptmeup.data.transforms import color_images
from promptmeup.records import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on `device`, their colours changed.

    On CUDA, copies (from page-locked memory) and colours run on a stream of their own: while the step before still
    computes, the next batch is under way.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    for batch in batches:
        if stream is None:
            yield color_images(batch.to(device))
            continue
        with torch.cuda.stream(stream):
            moved = color_images(batch.to(device))
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in tensors(moved):
            # the memory was taken on the side stream: it must not be given away before this one is done with it
            tensor.record_stream(current)
        yield moved


def tensors(batch: Batch) -> Iterator[torch.Tensor]:
    """Yield every tensor of a batch."""
    for part in (batch, batch.object_labels, batch.image_labels):
        if part is not None:
            values = (getattr(part, field.name) for field in fields(part))
            yield from (value for value in values if isinstance(value, torch.Tensor))
