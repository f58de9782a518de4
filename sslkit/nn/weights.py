"""Reading network weights from files, without ever running code from them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from sslkit.errors import CheckpointError
from sslkit.files import reason
from sslkit.run_files import ENCODER_FILE as ENCODER_FILE  # under this address, too

from . import safetensors_file
from .torch_file import load_torch_file

"""The encoder in a run folder."""
TIMM_FILE = "model.safetensors"
"""The network in a folder that timm loads from, such as an export for timm."""
_COUNTER = "num_batches_tracked"
_MODULE_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch's compiler, FSDP and activation checkpointing put into names, at any depth."""
_HEADS = re.compile(
    r"(fc|heads?|head_dist|classifier|last_layer|mask_token|prototypes?|queue|proj|pred"
    r"|(?:mlp|cls|aux)_head|(?:projection|projector|predictor|prediction|decoder)(?:_\w+)?)(\.|$)"
)
"""Parts of a pretraining method or a classifier, that a bare backbone does without."""
_WRAPPERS = re.compile(
    r"(?:(?:state_dict|model|module|network|net|backbone|encoder|encoder_q|base_encoder"
    r"|online_encoder|teacher|student)\.)+"
)
_MAX_NESTING = 8
_SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a .safetensors file, a torch file (.pth, .pt, .bin; read with
    `weights_only`), an earlier run folder (its `encoder.safetensors`) or a folder of
    `sslkit export --format timm` (its `model.safetensors`), on the CPU.

    Names are those of the file; a tensor in blocks, such as `{"teacher": {"conv1.weight": ...}}`,
    is called `teacher.conv1.weight`. What is no tensor is left out. Raises CheckpointError.
    """
    file = weight_file(path)
    if not file.is_file():
        hint = " (a run folder holds it once its run has finished)" if path.is_dir() else ""
        raise CheckpointError(f"{file}: no such file{hint}")
    try:
        if file.suffix == ".safetensors":
            return safetensors_file.load(file)
        content = load_torch_file(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not a readable weight file: {reason(error)}") from error
    found = dict(_tensors(content, ""))
    if not found:
        raise CheckpointError(f"{file}: expected a mapping of names to tensors, found none")
    for name, value in found.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise CheckpointError(
                f"{file}: {name} is no plain tensor ({value.layout}, {value.device}, "
                f"{value.dtype}); save the weights as dense tensors"
            )
    return found


def weight_file(path: Path) -> Path:
    """The file itself, or the one in the folder of a run or of an export for timm."""
    if not path.is_dir():
        return path
    exported = path / TIMM_FILE
    return exported if exported.is_file() else path / ENCODER_FILE


def _tensors(content: object, prefix: str, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of everything in nested mappings."""
    if not isinstance(content, Mapping) or depth > _MAX_NESTING:
        return
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            yield name, value
        else:
            yield from _tensors(value, f"{name}.", depth + 1)


@dataclass(frozen=True)
class FittingWeights:
    """Weights under the names of a model, all of whose weights they are."""

    weights: Mapping[str, Tensor]
    prefix: str
    """What the names in the file begin with, and the model's do not; empty for equal names."""
    left_out: tuple[str, ...]
    """Names in the file, behind the prefix, of heads that the model does not have."""

    def note(self) -> str | None:
        """What was done with the names; None where nothing was."""
        parts = [f"the names in the file begin with '{self.prefix}'"] if self.prefix else []
        if self.left_out:
            shown, more = self.left_out[:_SHOWN], len(self.left_out) - _SHOWN
            parts.append(f"left out: {', '.join(shown)}{f' and {more} more' if more > 0 else ''}")
        return "; ".join(parts) or None


def fit_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    prefix: str | None = None,
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> FittingWeights:
    """The tensors of a file that are all the weights of a model, behind any prefix that DDP,
    Lightning, the compiler or the method around the network have put before their names.

    prefix: the one to take; None: the only one behind which all names and shapes are the model's.
    convert: brings tensors of other releases into the model's names and shapes; it is tried where
    they do not fit. Raises CheckpointError where nothing fits, or several parts of the file do."""
    votes = _prefixes(model, tensors)
    tried = [prefix] if prefix is not None else [p for p, _ in votes.most_common(_MAX_NESTING)]
    fitting, refused = [], []
    for each in tried or _known_wrappers(tensors):
        found, reasons = _fit(model, tensors, each, convert)
        if found is not None:
            fitting.append(found)
        refused.append(reasons)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise CheckpointError(
            f"holds several networks that fit, under {_quoted(f.prefix for f in fitting)}; "
            "set weights_prefix to the one to take"
        )
    raise CheckpointError(_refusal(refused[0], votes, prefix, next(iter(tensors), "")))


def _refusal(reasons: list[str], votes: Counter[str], prefix: str | None, example: str) -> str:
    more = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    text = f"does not fit the model: {'; '.join(reasons[:_SHOWN])}{more}"
    if not votes:
        return f"{text}; no name in it ends as one of the model's does, the first is '{example}'"
    if prefix is not None and prefix not in votes:
        return f"{text}; names of the model stand behind {_quoted(votes)}, not '{prefix}'"
    behind = [each for each, _ in votes.most_common(_SHOWN) if each]
    return f"{text}; names of the model stand behind {_quoted(behind)}" if behind else text


def _quoted(prefixes: Iterable[str]) -> str:
    return " and ".join(f"'{prefix}'" for prefix in islice(prefixes, _SHOWN))


def _prefixes(model: nn.Module, tensors: Mapping[str, Tensor]) -> Counter[str]:
    """What stands before names of the model -> before how many of them; what occurs once or twice
    by chance, as in a head, is left out where something fits better."""
    wanted = {name for name in model.state_dict() if not name.endswith(_COUNTER)}
    votes: Counter[str] = Counter()
    for name in tensors:
        bare = _without_wrappers(name)
        start = 0
        while True:
            if bare[start:] in wanted:
                votes[bare[:start]] += 1
            start = bare.find(".", start) + 1
            if start == 0:
                break
    best = max(votes.values(), default=0)
    return Counter({prefix: n for prefix, n in votes.items() if 2 * n > best})


def _known_wrappers(tensors: Mapping[str, Tensor]) -> list[str]:
    """What may be a wrapper's, for files whose names must be converted before they are a model's:
    the longest first."""
    found = {""}
    for name in tensors:
        if match := _WRAPPERS.match(_without_wrappers(name)):
            parts = match[0].split(".")[:-1]
            found |= {".".join(parts[: n + 1]) + "." for n in range(len(parts))}
    return sorted(found, key=len, reverse=True)[:_MAX_NESTING]


def _fit(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    prefix: str,
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None,
) -> tuple[FittingWeights | None, list[str]]:
    """The weights behind a prefix, or why they do not fit."""
    bare = {_without_wrappers(name): value for name, value in tensors.items()}
    behind = {n.removeprefix(prefix): v for n, v in bare.items() if n.startswith(prefix)}
    wanted = model.state_dict()
    kept = {n: v for n, v in behind.items() if n in wanted or not _HEADS.match(n)}
    reasons = misfits(model, kept)
    if reasons and convert is not None:
        try:
            converted = convert(dict(behind))
        except Exception:  # it is made for one release and raises whatever it does on others
            return None, reasons
        kept = {n: v for n, v in converted.items() if n in wanted or not _HEADS.match(n)}
        reasons = reasons if misfits(model, kept) else []
    left_out = tuple(n for n in behind if n not in kept and _HEADS.match(n) and n not in wanted)
    return (None if reasons else FittingWeights(kept, prefix, left_out)), reasons


def _without_wrappers(name: str) -> str:
    for wrapper in _MODULE_WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def misfits(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Why these weights do not fit the model, one phrase per tensor; empty where they fit."""
    wanted = {n: v for n, v in model.state_dict().items() if not n.endswith(_COUNTER)}
    found = {n: v for n, v in weights.items() if not n.endswith(_COUNTER)}
    missing = [f"{name} is missing" for name in wanted if name not in found]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, the model's {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    unknown = [f"{name} is not in the model" for name in found if name not in wanted]
    return shapes + missing + unknown
