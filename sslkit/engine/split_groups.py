"""Groups of an optimiser that hold parameters in parts (`sslkit.parallel.sharding`) and whole ones:
torch computes on either, not on both at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sslkit.errors import PluginError
from sslkit.parallel.sharding import gathered, is_sharded, scattered


class SplitGroups:
    """The groups as they are given to an optimiser: each is cut in two where it holds both kinds.
    The state of the optimiser is that of the groups before the cut, with whole tensors, so that any
    number of processes goes on with it. Where nothing lies in parts, all is what it was."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._given = groups
        self.groups = [part for group in groups for part in _parts(group)]
        self._sharded = any(is_sharded(p) for group in groups for p in group["params"])

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raises PluginError where an optimiser has other groups than it was given, so that its
        state cannot be told apart."""
        made = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        if self._sharded and made != [[id(p) for p in group["params"]] for group in self.groups]:
            raise PluginError(
                f"optimizer: {type(optimizer).__name__} makes groups of its own, whose state "
                "cannot be saved with train.parallel=fsdp; set train.parallel=ddp, or keep the "
                "groups that Optimizer.create is given"
            )

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Has an optimiser take its step. PluginError where it cannot on tensors in parts."""
        try:
            optimizer.step()
        except NotImplementedError as error:  # torch's, of an operation that has no form for them
            if not self._sharded:
                raise
            raise PluginError(
                f"optimizer: {type(optimizer).__name__} does not compute on weights in parts "
                f"({str(error).splitlines()[0]}); set train.parallel=ddp, or make it without fused"
            ) from error

    def joined(self, state: dict[str, Any], *, keep: bool) -> dict[str, Any]:
        """The state of the optimiser as if no group had been cut. All ranks call this together.
        keep: whether this rank wants the tensors that lie in parts."""
        if not self._sharded:
            return state
        places = _places(self._given)
        entries = {
            places[id(p)]: gathered(state["state"][number], keep=keep)
            for number, p in enumerate(_parameters(self.groups))
            if number in state["state"]
        }
        saved = zip(state["param_groups"], self.groups, strict=True)
        rules = {id(p): group for group, made in saved for p in made["params"]}
        groups = [
            {**rules[id(given["params"][0])], "params": [places[id(p)] for p in given["params"]]}
            for given in self._given
        ]
        return {"state": dict(sorted(entries.items())), "param_groups": groups}

    def cut(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The other way round: what the optimiser takes."""
        if not self._sharded:
            return dict(state)
        if len(state["param_groups"]) != len(self._given):
            raise ValueError(
                f"it has {len(state['param_groups'])} groups of parameters, not {len(self._given)}"
            )
        places, now = _places(self._given), _places(self.groups)
        entries = {
            now[id(p)]: _in_parts(state["state"][places[id(p)]], p)
            for p in _parameters(self.groups)
            if places[id(p)] in state["state"]
        }
        saved = {
            id(p): group
            for given, group in zip(self._given, state["param_groups"], strict=True)
            for p in given["params"]
        }
        groups = [
            {**saved[id(part["params"][0])], "params": [now[id(p)] for p in part["params"]]}
            for part in self.groups
        ]
        return {"state": entries, "param_groups": groups}


def _parts(group: dict[str, Any]) -> list[dict[str, Any]]:
    sharded = [p for p in group["params"] if is_sharded(p)]
    if len(sharded) in (0, len(group["params"])):
        return [group]
    whole = [p for p in group["params"] if not is_sharded(p)]
    return [{**group, "params": sharded}, {**group, "params": whole}]


def _parameters(groups: Sequence[Mapping[str, Any]]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]


def _places(groups: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Parameter -> its number, as the state of an optimiser counts them."""
    return {id(p): number for number, p in enumerate(_parameters(groups))}


def _in_parts(entry: Any, parameter: nn.Parameter) -> Any:
    """What is kept for one parameter, each tensor of its shape in parts as the parameter is."""
    if not isinstance(entry, Mapping):
        return entry
    return {key: scattered(value, parameter) for key, value in entry.items()}
