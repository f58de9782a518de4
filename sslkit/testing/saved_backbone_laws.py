"""What a backbone promises of its weights in files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch

from sslkit import installed_components
from sslkit.api import Backbone, NoTimmModelError, Slot, resolve_component
from sslkit.errors import ExportError, message_of
from sslkit.experiment.encoder import load_encoder
from sslkit.experiment.networks import (
    build_backbone,
    described_preparation,
    input_shape,
    without_weights,
)
from sslkit.nn import safetensors_file
from sslkit.randomness import seeded
from sslkit.runs.encoder_file import EncoderDescription, write_encoder
from sslkit.runs.folder import RunFolder
from sslkit.workflows.export.export import export_encoder

from .laws import UntriedError, law, refuse
from .network_laws import STILL
from .small_runs import distance
from .token_laws import TokenLaws

_SAVED = (*STILL, "state-is-complete", "what-is-exported-is-complete")


class SavedBackboneLaws(TokenLaws):
    """The laws of `Backbone` on what is saved and loaded again."""

    @law(
        "give all tensors that features follow from, also buffers that are not persistent, unless "
        "the configuration makes them; import_state takes them back",
        needs=(*STILL, "state-is-complete"),
    )
    def what_is_exported_is_complete(self) -> str:
        """What `export_state` gives, written to a safetensors file and taken back by `import_state`
        of a network that is built without starting weights, gives the same features to the bit."""
        network, again = self.used(), self._built_from_its_block()
        state = network.export_state()
        weights = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        path = self.subject.folder / "weights.safetensors"
        safetensors_file.save(path, weights, {})
        again.import_state(safetensors_file.load(path))
        self._refuse_other_features(network, again)
        return f"{sum(value.nbytes for value in weights.values()) / 1e6:.2g} MB"

    def _built_from_its_block(self) -> Backbone:
        """From the block that an export stores, under another seed."""
        bare = self.bare
        fields = {k: v for k, v in bare.dump().items() if k != "name"}
        context = {"registry": installed_components()}
        config = bare.cls.Config.model_validate(fields, context=context)
        with seeded(0, "another initialisation"):
            return build_backbone(bare.with_config(config), input_shape(self.facts))

    def _refuse_other_features(self, network: Backbone, again: Backbone) -> None:
        samples = self.samples()
        expected, found = self.evaluated(network, samples), self.evaluated(again, samples)
        refuse(
            not torch.equal(expected, found), f"features are {distance(found, expected):.2g} away"
        )

    @law(
        "let from_weights name the file in a block that the constructor loads it from, "
        "starting_weights say so without opening it, and without_weights leave it out",
        needs=_SAVED,
    )
    def starts_from_a_file_and_without(self) -> str:
        """`from_weights` starts it from the file of its weights; `starting_weights` then names the
        file, loading nothing, and `without_weights` needs it no more."""
        network, folder = self.used(), self.subject.folder / "start"
        folder.mkdir(exist_ok=True)
        path = folder / "weights.safetensors"
        block = self.slot.cls.from_weights(self.bare.dump(), path)
        if block is None:
            raise SkipTest("it starts from no file")
        weights = {n: v.detach().contiguous() for n, v in network.export_state().items()}
        safetensors_file.save(path, weights, {})
        slot = self._named(block)
        with seeded(0, "another initialisation"):
            again = build_backbone(slot, input_shape(self.facts))
        self._refuse_other_features(network, again)
        path.unlink()
        found = slot.cls.starting_weights(slot.config)
        refuse(found is None, "starting_weights gave nothing for it")
        bare = without_weights(slot)
        refuse(
            bare.cls.starting_weights(bare.config) is not None, "without_weights leaves it there"
        )
        build_backbone(bare, input_shape(self.facts))
        return found.source if found is not None and found.path is None else ""

    def _named(self, block: Any) -> Slot[Backbone]:
        if self.slot.distribution == "class":
            fields = {k: v for k, v in block.items() if k != "name"}
            return self.slot.with_config(self.slot.cls.Config.model_validate(fields))
        return resolve_component(installed_components(), "backbone", block)

    @law(
        "let what the constructor makes follow from the configuration and the shape alone",
        needs=_SAVED,
    )
    def loads_from_the_file_of_a_run(self) -> None:
        """`sslkit.load_encoder` makes it again from `encoder.safetensors`, with the same features
        to the bit."""
        network = self.used()
        self._refuse_other_features(network, load_encoder(self._encoder_file(network)))

    def _encoder_file(self, network: Backbone) -> Path:
        """The file, as a run writes it."""
        if self.slot.distribution == "class":
            raise UntriedError("no plugin registers it, by whose name it could be loaded")
        shape, sample = input_shape(self.facts), self.facts.sample
        given: dict[str, Any] = {"shape": shape, "sample": dataclasses.asdict(sample)}
        if network.takes_images:
            given = {"channels": shape[0], "image_size": shape[-1]}
        described = EncoderDescription(
            backbone=self.bare.dump(),
            preprocess=described_preparation(network) or {},
            recipe_hash="conformance",
            **given,
        )
        folder = RunFolder.create(self.subject.folder / "runs", "conformance")
        weights = {n: v.detach().cpu().contiguous() for n, v in network.export_state().items()}
        return write_encoder(folder, weights, described)

    @law(
        "see `sslkit export`: timm_model names the architecture of the exported names; what "
        "torch.export cannot trace is Python that looks at values",
        needs=(*_SAVED, "loads-from-the-file-of-a-run"),
        slow=True,
    )
    def exports_are_faithful(self) -> str:
        """What `sslkit export` writes of it for timm and for torch.export makes the same features;
        a format that is not for it says so."""
        file = self._encoder_file(self.used())
        text = []
        for name in ("timm", "torch-export"):
            try:
                made = export_encoder(file, name, self.subject.folder / name)
            except ExportError as error:
                refuse(self._is_for_it(name, error), message_of(error, 300))
                text.append(f"{name}: none")
            else:
                text.append(f"{name}: equal {made.difference.words()}")
        return "; ".join(text)

    def _is_for_it(self, format: str, error: ExportError) -> bool:
        """Whether a format that failed was meant to work: timm for what is a model of timm,
        torch.export for what can be traced."""
        if format == "timm":
            try:
                self.make().timm_model()
            except NoTimmModelError:
                return False
            return True
        return "cannot trace" not in str(error)
