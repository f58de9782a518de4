"""The parameters of a network in the order in which it works, for rules that follow the depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

Named = tuple[str, nn.Parameter]
"""A parameter and its name in the network."""


def groups_by_module_order(network: nn.Module) -> list[list[Named]]:
    """The parameters of a network in groups from its input to its output, as far as the order in
    which modules were registered tells: one group for each child that has parameters, where lists
    of blocks of one class are taken apart. Modules with a single child are looked into. Parameters
    of the network itself, such as tokens, are in the first group.

    Every parameter is in one group, shared ones where they come first."""
    taken: set[int] = set()
    groups = []
    for members in _members(network, ""):
        fresh = [(name, p) for name, p in members if id(p) not in taken]
        taken.update(id(p) for _, p in fresh)
        if fresh:
            groups.append(fresh)
    return groups


def _members(module: nn.Module, prefix: str) -> list[list[Named]]:
    own = [(prefix + name, p) for name, p in module.named_parameters(recurse=False)]
    children = [
        (f"{prefix}{name}.", child)
        for name, child in module.named_children()
        if next(child.parameters(), None) is not None
    ]
    if not own and len(children) == 1:
        path, child = children[0]
        return _members(child, path)
    groups: list[list[Named]] = []
    for path, child in children:
        if _is_list_of_blocks(child):
            groups += [
                [(f"{path}{name}.{inner}", p) for inner, p in block.named_parameters()]
                for name, block in child.named_children()
            ]
        else:
            groups.append([(path + name, p) for name, p in child.named_parameters()])
    if own and groups:
        return [own + groups[0], *groups[1:]]
    return [own] if own else groups


def _is_list_of_blocks(module: nn.Module) -> bool:
    classes = {type(child) for child in module.children()}
    return isinstance(module, (nn.ModuleList, nn.Sequential)) and len(classes) == 1


def groups_by_names(
    network: nn.Module, layers: Mapping[int, Sequence[str]], prefix: str = ""
) -> list[list[Named]]:
    """The same from names: layer number -> names of its parameters, without `prefix`. What no layer
    names comes last."""
    named = dict(network.named_parameters())
    groups = []
    for layer in sorted(layers):
        found = [(prefix + name, named.pop(prefix + name)) for name in layers[layer]]
        groups.append(found)
    if named:
        groups.append(list(named.items()))
    return [group for group in groups if group]


def decayed_scales(groups: int, decay: float) -> list[float]:
    """Factors of the learning rate of so many groups, from the input on: `decay` for the last, and
    once more for each group before it (Clark et al. 2020, arXiv:2003.10555; as in BEiT and MAE,
    where the classifier on top has 1)."""
    return [decay ** (groups - group) for group in range(groups)]
