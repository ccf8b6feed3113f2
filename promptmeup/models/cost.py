"""What a model costs: parameters by part, floating-point operations and saved activations of a row.

Nothing is estimated by a formula of ours: the model itself runs on the meta device, which has shapes and no values,
under torch's own counter and torch's own hooks. So attention, patch embedding, convolutions, object pooling and heads
are what the model really does. Rows do not meet in it, so its cost is linear in them; and a caption of L tokens costs
a quadratic polynomial in L, since attention is the only part that is more than linear: three lengths give it exactly.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from promptmeup.models.alignment import AlignmentModel
from promptmeup.models.layers import EXPENSIVE, Checkpointing, checkpoint_layers, transformer_layers

LENGTHS = (8, 16, 32)
"""at which the polynomial is fixed"""

Polynomial = tuple[float, float, float]
"""a + b L + c L²"""


@dataclass(frozen=True)
class RowCost:
    """Floating-point operations of one pair with a caption of L tokens, a multiplication and an addition being two.

    Losses are not in it (see `losses.cost`), nor what is not a matrix product or a convolution: norms, softmax, GELU.
    """

    forward: Polynomial
    backward: Polynomial
    """without operations that are done again, such as those of fused attention"""

    def forward_flops(self, length: float) -> float:
        return _at(self.forward, length)

    def step_flops(self, length: float) -> float:
        """Return those of the forward and the backward pass."""
        return self.forward_flops(length) + _at(self.backward, length)


@dataclass(frozen=True)
class SavedBytes:
    """Activations that wait for the backward pass."""

    row: int
    fixed: int

    def of(self, rows: int) -> int:
        return self.fixed + self.row * rows


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each child: text, vision, fusion, heads."""
    found = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sum(found.values()) == sum(p.numel() for p in model.parameters()), "a parameter in two parts"
    return found


def row_cost(model: AlignmentModel, *, max_objects: int) -> RowCost:
    """Return the cost of a row of a `sketch.sketch`, in training, `max_objects` boxes and all."""
    forwards = []
    for length in LENGTHS:
        with _counter() as counter:
            features = run(model, rows=1, length=length, max_objects=max_objects)
            forwards.append(counter.get_total_flops())
            if length == LENGTHS[-1]:
                _backward(features)
    # Two products for each one, but for inputs that need no gradient: pixels and boxes, whose cost knows no L.
    backward = counter.get_total_flops() - forwards[-1]
    unneeded = 2 * forwards[-1] - backward
    return RowCost(_through(forwards), _through([2 * forward - unneeded for forward in forwards]))


def saved_bytes(
    model: AlignmentModel,
    *,
    length: int,
    max_objects: int,
    dtype: torch.dtype = torch.float32,
    checkpointing: Checkpointing = "none",
) -> SavedBytes:
    """Return what the forward pass of a `sketch.sketch` keeps for the backward pass, `checkpointing` its layers.

    Attention is taken to be fused, as it is on a GPU: it keeps its inputs, its output and a number a row, and not the
    probabilities. The model is left in `dtype`, with its layers checkpointed.
    """
    model.to(dtype)
    checkpoint_layers(model, checkpointing)
    few, more = (_saved(model, rows=rows, length=length, max_objects=max_objects) for rows in (2, 4))
    row = (more - few) // 2
    return SavedBytes(row, few - 2 * row)


def run(model: AlignmentModel, *, rows: int, length: int, max_objects: int) -> dict[str, Tensor]:
    """Run a model of the meta device on a batch of these sizes."""
    size = model.config.vision.image_size
    dtype = next(model.parameters()).dtype
    with torch.device("meta"):
        features: dict[str, Tensor] = model(
            torch.empty(rows, 3, size, size, dtype=dtype),
            torch.empty(rows, length, dtype=torch.int64),
            torch.empty(rows, length, dtype=torch.bool),
            torch.empty(rows, max_objects, 4),
            torch.empty(rows, max_objects, dtype=torch.bool),
        )
    return features


def _backward(features: dict[str, Tensor]) -> None:
    torch.stack([value.sum() for value in features.values() if value.requires_grad]).sum().backward()  # type: ignore[no-untyped-call]


def _counter() -> Any:
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )


def _convolution_backward(
    grad_out_shape: Sequence[int],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    out_shape: Any = None,  # noqa: ARG001
) -> int:
    """The gradient of the input and that of the weight cost what the forward pass does.

    torch's own formula (2.15) forgets that groups do not meet: a depthwise convolution's weight would count as many
    times too much as it has channels, and EfficientNet-Lite0's step 3.6 times.
    """
    forward = conv_flop_count(
        list(input_shape), list(weight_shape), list(grad_out_shape), transposed=transposed
    )
    return forward * sum(bool(wanted) for wanted in output_mask[:2])


def _saved(model: AlignmentModel, *, rows: int, length: int, max_objects: int) -> int:
    own = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other gets its number
        return tensor

    # torch's checkpoints keep what they need themselves, where these hooks do not see it
    checkpointed = [layer for layer in transformer_layers(model) if "forward" in vars(layer)]
    products = _Products(keep)
    handles = []

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    for layer in checkpointed:
        handles += [layer.register_forward_pre_hook(keep_input)]
        if vars(layer)["forward"].keywords.get("context_fn"):
            handles += [
                layer.register_forward_pre_hook(lambda *_: products.look(True)),
                layer.register_forward_hook(lambda *_: products.look(False)),
            ]
    with (
        warnings.catch_warnings(),
        saved_tensors_hooks(keep, lambda tensor: tensor),
        products,
        _FusedAttention(),
    ):
        # of a torch to come, whose selective checkpoints will show these hooks what they keep
        warnings.simplefilter("ignore", FutureWarning)
        features = run(model, rows=rows, length=length, max_objects=max_objects)
    for handle in handles:
        handle.remove()
    del features
    return sum(storage.nbytes() for storage in kept.values())


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows what selective checkpoints keep, while it looks: the outputs of what is expensive."""

    def __init__(self, keep: Callable[[Tensor], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keep, self._looks = keep, False

    def look(self, looks: bool) -> None:
        self._looks = looks

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = operation(*args, **(kwargs or {}))
        if self._looks and operation in EXPENSIVE:
            for value in found if isinstance(found, tuple) else (found,):
                if isinstance(value, Tensor):
                    self._keep(value)
        return found


class _FusedAttention(TorchFunctionMode):
    """Attention as on a GPU; on the meta device torch would choose the plain one, which keeps all probabilities."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        return _efficient_attention(*args, **kwargs)


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    bias = None
    if attn_mask is not None:  # torch makes numbers of a bool mask
        bias = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device)
        bias = bias.expand(*query.shape[:3], key.shape[2])
    found: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p, is_causal, scale=scale
    )[0]
    return found


def _through(values: Sequence[float]) -> Polynomial:
    """Return the polynomial that has `values` at LENGTHS."""
    powers = torch.tensor([[1.0, n, n * n] for n in LENGTHS], dtype=torch.float64)
    a, b, c = torch.linalg.solve(powers, torch.tensor(values, dtype=torch.float64)).tolist()
    return a, b, c


def _at(polynomial: Polynomial, length: float) -> float:
    a, b, c = polynomial
    return a + b * length + c * length * length
