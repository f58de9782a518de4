"""Layers of timm models: their blocks, and how they start."""

from __future__ import annotations

import re
from typing import Any

from torch import nn


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that timm groups parameters by: those whose name as a whole is such a group's,
    without those inside another one."""
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        return []
    groups = matcher(coarse=False)["blocks"]
    patterns = [groups] if isinstance(groups, str) else [pattern for pattern, _ in groups]
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in found)
        if not inner and any(re.fullmatch(pattern, name) for pattern in patterns):
            found[name] = module
    return list(found.values())


def reset_layers(model: nn.Module) -> None:
    """Gives every layer the weights that its constructor draws."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
