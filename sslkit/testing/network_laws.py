"""What backbones and heads promise alike."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from sslkit.engine.contract import describe
from sslkit.experiment.networks import holds_weights
from sslkit.nn.modes import frozen
from sslkit.nn.numerics import autocast
from sslkit.randomness import seeded

from .any_facts import FactsLaws
from .global_random import global_random_numbers_unused
from .held_state import changes, held
from .laws import law, refuse
from .small_runs import distance, listed, other_bits
from .trial_samples import root_mean_square

CLOSE = 1e-4
"""The largest difference in float32 that other sizes and layouts of batches make, in parts of the
largest value."""
_HALF_PRECISION = 0.15
"""How far bf16, with 8 bits, may move outputs, in parts of their root mean square."""
_ROWS = 8
_NUDGE = 0.05
WIDTH = ("gives-the-stated-width",)
STILL = (*WIDTH, "evaluation-repeats", "evaluation-changes-nothing")


class NetworkLaws(FactsLaws):
    """The laws of networks that turn each sample into a vector."""

    @abstractmethod
    def make(self, stream: str = "initialisation") -> Any:
        """The network with random weights, which follow from the name of a stream of random
        numbers."""

    @abstractmethod
    def samples(self, rows: int = _ROWS, stream: str = "samples") -> Tensor:
        """What it takes: (rows, ...)."""

    @abstractmethod
    def width(self, network: Any) -> tuple[str, object]:
        """The name of the attribute that states the width, and what it states."""

    def used(self, stream: str = "initialisation") -> Any:
        """A network that was trained on two batches, as far as its buffers go."""
        network = self.make(stream)
        network.train()
        with torch.no_grad(), seeded(0, "training"):
            for number in range(2):
                network(self.samples(stream=f"batch {number}"))
        return network

    def evaluated(self, network: nn.Module, samples: Tensor, stream: str = "one") -> Tensor:
        """What it gives in evaluation mode. stream: of the random numbers of torch, which it should
        not draw then."""
        with frozen(network), seeded(0, stream):
            found: Tensor = network(samples.clone())
        return found

    # --- What it gives ----------------------------------------------------------------------------

    @law("set the attribute in the constructor to what forward gives, one row for each sample")
    def gives_the_stated_width(self) -> str:
        """It gives each sample a vector as wide as it states (`out_dim` of a head, `num_features`
        of a backbone), of finite floating-point numbers, in training and in evaluation."""
        network = self.make()
        self.refuse_other_width(network, self.samples())
        return f"{self.width(network)[1]} wide"

    def refuse_other_width(self, network: nn.Module, samples: Tensor) -> None:
        """Raises LawBrokenError where what it gives is not as it states."""
        name, width = self.width(network)
        refuse(type(width) is not int, f"{name} is {width!r}")
        network.train()
        with seeded(0, "training"):
            trained = network(samples.clone())
        for mode, found in (
            ("training", trained), ("evaluation", self.evaluated(network, samples))
        ):  # fmt: skip
            odd = not isinstance(found, Tensor) or found.shape != (len(samples), width)
            refuse(
                odd or not found.is_floating_point(),
                f"{name} is {width}; of {describe(samples)} it made {describe(found)} in {mode}",
            )
            refuse(not bool(found.isfinite().all()), f"values that are not finite in {mode}")

    @law(
        "use torch's generator alone, which is seeded for initialisation and for each step",
        needs=WIDTH,
    )
    def no_random_numbers_of_numpy_or_python(self) -> None:
        """Neither building it nor passing samples through it uses the global random numbers of
        Python or numpy, which no checkpoint holds."""
        with global_random_numbers_unused("it"):
            self.evaluated(self.used(), self.samples())

    # --- Weights ----------------------------------------------------------------------------------

    @law(
        "initialise with torch's functions and without a generator of its own; leave sets, clocks "
        "and threads out of it",
        needs=(*WIDTH, "no-random-numbers-of-numpy-or-python"),
    )
    def the_seed_decides_its_weights(self) -> None:
        """Built twice under the same seed, it has the same bits."""
        one, other = (self.make().state_dict() for _ in range(2))
        odd = other_bits(one, other)
        refuse(odd, f"{listed(odd)} differ between two of the same seed")

    @law(
        "draw initial weights from torch's generator; a backbone that starts from trained weights "
        "says so in starting_weights and leaves them out in without_weights",
        needs=(*WIDTH, "the-seed-decides-its-weights"),
    )
    def untrained_is_random(self) -> None:
        """Built without starting weights under two seeds, it has two sets of weights: what is
        called untrained holds nothing that was learned."""
        one, other = self.make(), self.make("another initialisation")
        if not any(p.numel() > 1 for p in one.parameters()):
            raise SkipTest("it has no weights")
        refuse(holds_weights(one, other), "two seeds have most weights in common")

    @law(
        "use every parameter in forward, or leave it out; freeze with requires_grad_(False) what "
        "is fixed",
        needs=WIDTH,
    )
    def gradients_reach_every_parameter(self) -> str:
        """The gradient of what it gives reaches every parameter that is not frozen."""
        network = self.make()
        network.train()
        trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        with seeded(0, "nudge"), torch.no_grad():
            for parameter in trained.values():  # what starts at zero hides what lies below it
                parameter.add_(_NUDGE * torch.randn_like(parameter))
        for number in range(2):
            with seeded(0, "training", number):
                given = network(self.samples(stream=f"batch {number}"))
                (given * torch.randn_like(given)).sum().backward()
        silent = [n for n, p in trained.items() if p.grad is None or not bool(p.grad.any())]
        refuse(silent, f"no gradient for {listed(silent)}")
        return f"{len(trained)} parameters"

    @law(
        "register tensors that last with register_buffer, and networks as modules: what is a plain "
        "attribute, or in a plain list, is in no checkpoint",
        needs=STILL,
    )
    def state_is_complete(self) -> None:
        """One of other weights that takes over its `state_dict` gives the same to the bit."""
        one, other = self.used(), self.make("another initialisation")
        other.load_state_dict(one.state_dict())
        samples = self.samples()
        expected, found = self.evaluated(one, samples), self.evaluated(other, samples)
        refuse(not torch.equal(expected, found), f"is {distance(found, expected):.2g} away")

    @law(
        "keep tensors as parameters and buffers of each instance; hooks and closures that hold the "
        "first instance do not survive copy.deepcopy",
        needs=(*STILL, "state-is-complete"),
    )
    def instances_are_independent(self) -> None:
        """A copy, such as a teacher, gives the same and shares no memory with the first; nor do two
        that are built."""
        one, samples = self.used(), self.samples()
        others = {"a copy": copy.deepcopy(one), "another that was built": self.make()}
        expected = {name: self.evaluated(other, samples) for name, other in others.items()}
        first = self.evaluated(one, samples)
        refuse(not torch.equal(expected["a copy"], first), "a copy gives others")
        with torch.no_grad():
            for value in (*one.parameters(), *one.buffers()):
                value.zero_()
        shared = [
            name
            for name, other in others.items()
            if not torch.equal(self.evaluated(other, samples), expected[name])
        ]
        refuse(shared, f"zeroing the weights of one changed {listed(shared)}")

    # --- Evaluation -------------------------------------------------------------------------------

    @law(
        "draw nothing where `self.training` is false; nn.Dropout and the like do so by themselves, "
        "functional.dropout needs training=self.training",
        needs=(*WIDTH, "no-random-numbers-of-numpy-or-python"),
    )
    def evaluation_repeats(self) -> None:
        """In evaluation mode it gives the same for the same samples, to the bit, whatever torch's
        generator is at."""
        network, samples = self.used(), self.samples()
        one, other = (self.evaluated(network, samples, stream) for stream in ("one", "two"))
        refuse(not torch.equal(one, other), f"twice the same is {distance(one, other):.2g} apart")

    @law(
        "change buffers and attributes where `self.training` is true alone, and leave the mode of "
        "modules to `train` and `eval`",
        needs=WIDTH,
    )
    def evaluation_changes_nothing(self) -> None:
        """In evaluation mode it changes no parameter, no buffer, statistics of BatchNorm included,
        and no attribute."""
        network = self.used()
        self.evaluated(network, self.samples())  # what is made once and kept, such as a grid
        before = {**held(network), **copy.deepcopy(network.state_dict())}
        self.evaluated(network, self.samples(stream="others"))
        found = changes(before, {**held(network), **network.state_dict()})
        refuse(found, f"changed {listed(found)}")

    @law("compute what goes over the batch in training mode alone, as BatchNorm does", needs=STILL)
    def evaluation_treats_samples_alone(self) -> None:
        """In evaluation mode it gives a sample the same in any batch, alone or at any place."""
        network, samples = self.used(), self.samples()
        whole = self.evaluated(network, samples)
        parts = samples[:1], samples[1:4], samples[4:]
        joined = torch.cat([self.evaluated(network, part) for part in parts])
        turned = self.evaluated(network, samples.flip(0)).flip(0)
        far = max(distance(joined, whole), distance(turned, whole))
        refuse(not far <= CLOSE, f"in other batches it is {far:.2g} away, in parts of the largest")

    @law(
        "work out of place on what forward is given: no `inplace=True` in a first layer",
        needs=WIDTH,
    )
    def what_it_takes_is_left_alone(self) -> None:
        """It does not write to the samples that it is given: other networks see them too."""
        for training in (True, False):
            network, samples = self.make(), self.samples()
            network.train(training)
            before = samples.clone()
            with torch.no_grad(), seeded(0, "training"):
                network(samples)
            refuse(not torch.equal(samples, before), f"changed {describe(samples)}")

    @law(
        "compute sums, norms, exponents and softmax of many values in float32: "
        "torch.autocast does so for its own functions",
        needs=STILL,
    )
    def half_precision_is_safe(self) -> str:
        """Under autocast to bf16 what it gives is finite, and near that in float32."""
        network, samples = self.used(), self.samples()
        expected = self.evaluated(network, samples)
        with autocast(torch.device("cpu"), "bf16"):
            found = self.evaluated(network, samples).float()
        refuse(not bool(found.isfinite().all()), "values that are not finite")
        far = root_mean_square(found - expected) / max(root_mean_square(expected), 1e-6)
        refuse(not far <= _HALF_PRECISION, f"is {far:.2g} of its root mean square away")
        return f"{far:.1g} away"
