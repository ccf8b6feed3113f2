"""The collectives that a piece of code really makes, whoever calls them: as torch dispatches them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "alltoall_base_": "all-to-all",
}


@dataclass(frozen=True)
class Call:
    kind: str
    """of KINDS, else torch's own name"""
    bytes: int
    """of the largest tensor in it: all that is summed, gathered or scattered"""


class Recorder(TorchDispatchMode):
    """Within it, `calls` grows by every collective; slow, so never timed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            name = function._schema.name.removeprefix("c10d::")
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            size = max(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.calls.append(Call(KINDS.get(name, name), size))
        return function(*args, **(kwargs or {}))
