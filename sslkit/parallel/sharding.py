"""Weights in parts: of each block of a large network every rank keeps its rows alone, and torch's
`fully_shard` (FSDP2) brings a block together while it computes.

Only blocks that repeat, such as those of a transformer, lie in parts: they are nearly all of the
weights where weights are too large for a device. Everything else (embeddings of patches, heads,
prototypes, tokens) stays whole on every rank, so that an objective or a teacher may use it as it
would in one process.

A tensor in parts is a torch `DTensor`. One process never has one, and does not import them.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_CONTAINERS = nn.ModuleList, nn.Sequential
_MOSTLY = 0.5
"""A block that has more than this part of its weights in a list of blocks is taken apart."""


# --- Tensors in parts ----------------------------------------------------------------------------


def is_sharded(tensor: object) -> bool:
    """Whether a tensor lies in parts on the ranks."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What of a tensor is here, without its gradient and in the same memory: all of it, or where
    it lies in parts the rows of this rank."""
    detached = tensor.detach()
    return cast(Any, detached).to_local() if is_sharded(tensor) else detached


def gathered(value: Any, *, keep: bool) -> Any:
    """A state (nested dicts, lists and tuples) with every tensor whole: those that lay in parts are
    brought together on the CPU, one after the other. All ranks call this together.

    keep: whether this rank wants the result; elsewhere empty tensors stand for those."""
    if is_sharded(value):
        whole = value.detach().full_tensor()
        return whole.cpu() if keep else whole.new_empty(0, device="cpu")
    return mapped(lambda item: gathered(item, keep=keep), value)


def scattered(value: Any, like: Any) -> Any:
    """What `gathered` gave, in parts again where `like`, an entry of the same state here, is. No
    message is sent: every rank has all of it. Entries that `like` lacks stay as they are."""
    if is_sharded(like) and isinstance(value, Tensor) and value.shape == like.shape:
        from torch.distributed.tensor import distribute_tensor

        whole = value.to(like.device, like.dtype)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    if isinstance(value, dict) and isinstance(like, Mapping):
        return with_values(value, {key: scattered(v, like.get(key)) for key, v in value.items()})
    return value


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """A dict, list or tuple of what `change` makes of its items; anything else as it is."""
    if isinstance(value, dict):
        return with_values(value, {key: change(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        found = [change(item) for item in value]
        same = all(one is other for one, other in zip(found, value, strict=True))
        return value if same else type(value)(found)
    return value


def with_values(given: dict[Any, Any], values: dict[Any, Any]) -> dict[Any, Any]:
    """A dict with other values, which keeps what torch notes beside a state (`_metadata`); itself
    where none is another one."""
    if all(values[key] is item for key, item in given.items()):
        return given
    changed = copy.copy(given)
    changed.update(values)
    return changed


# --- Networks in parts ---------------------------------------------------------------------------


def blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that repeat in a network, and lie in parts: the elements of every `ModuleList` or
    `Sequential` that are of one class, have weights, and are neither single layers nor plain
    containers, as the layers of a head are. Of those within each other the outer ones count, unless
    most of an element is such a list again, as in networks of several stages."""
    if _is_list(network):
        inner = [blocks(element) for element in network.children()]
        return [
            block
            for element, found in zip(network.children(), inner, strict=True)
            for block in (found if _weights(*found) > _MOSTLY * _weights(element) else [element])
        ]
    return [block for child in network.children() for block in blocks(child)]


def _is_list(module: nn.Module) -> bool:
    elements = list(module.children())
    return (
        isinstance(module, _CONTAINERS)
        and len(elements) > 1
        and len({type(element) for element in elements}) == 1
        and not isinstance(elements[0], _CONTAINERS)
        and all(_weights(element) and any(element.children()) for element in elements)
    )


def _weights(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def shard(root: nn.Module, network: nn.Module, device: torch.device, group: ProcessGroup) -> None:
    """Leaves of each block of a network this rank's rows, with the weights of rank 0, which all
    ranks call together. Gradients are summed over the ranks, not averaged.

    root: the module whose forward pass all blocks are called in; torch looks ahead in it."""
    from torch.distributed import broadcast
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            whole = tensor.detach().contiguous()  # also where channels come last
            broadcast(whole, group_src=0, group=group)
            tensor.copy_(whole)
    found = blocks(network)
    together = _kept_whole(network, found)
    mesh = DeviceMesh.from_group(group, device.type)
    for block in found:
        for parameter in block.parameters():
            parameter.data = parameter.data.contiguous()
        _sum_gradients(fully_shard(block, mesh=mesh, ignored_params=together))
    _sum_gradients(fully_shard(root, mesh=mesh, ignored_params=together))


def _kept_whole(network: nn.Module, found: list[nn.Module]) -> set[nn.Parameter]:
    """Parameters outside the blocks, those that several blocks share, and single numbers."""
    inside = Counter(p for block in found for p in block.parameters())
    return {p for p in network.parameters() if inside[p] != 1 or p.ndim == 0}


def _sum_gradients(module: Any) -> None:
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
