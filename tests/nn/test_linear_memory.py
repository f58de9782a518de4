"""Chunks change memory, not results; and memory grows linearly with the batch."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sslkit.nn.functional import contrastive_accuracy_and_entropy, info_nce, nt_xent, sup_con

Loss = Callable[..., Tensor]
LABELS = torch.arange(11) % 4
LOSSES: dict[str, Loss] = {
    "nt_xent": lambda a, b, n, t, c: nt_xent(a, b, t, chunk_elements=c),
    "in_batch": lambda a, b, n, t, c: info_nce(a, b, None, t, chunk_elements=c),
    "both_ways": lambda a, b, n, t, c: info_nce(a, b, None, t, symmetric=True, chunk_elements=c),
    "queue": lambda a, b, n, t, c: info_nce(a, b, n, t, chunk_elements=c),
    "sup_con": lambda a, b, n, t, c: sup_con([a, b], LABELS, t, chunk_elements=c),
}


def rows(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("temperature", [0.2, 0.001])
@pytest.mark.parametrize("name", LOSSES)
def test_chunks_do_not_change_losses(name: str, temperature: float) -> None:
    inputs = [rows(11, 0), rows(11, 1), rows(17, 2)]

    def evaluate(chunk: int) -> list[Tensor]:
        loss = LOSSES[name](*inputs, temperature, chunk)
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        return [loss.detach(), *gradients]

    whole = evaluate(10**6)
    assert sum(gradient.abs().max() for gradient in whole[1:]) > 0.01
    for chunk in (1, 13, 60, 200):
        torch.testing.assert_close(evaluate(chunk), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["both_views", "in_batch", "queue"])
def test_chunks_do_not_change_metrics(form: str) -> None:
    query, key = rows(11, 0).detach(), rows(11, 1).detach()
    query[3] = query[7]  # ties
    key[3] = key[7]
    queue = torch.cat([rows(6, 2).detach(), key[:2]]) if form == "queue" else None
    results = [
        contrastive_accuracy_and_entropy(
            query, key, queue, 0.2, both_views=form == "both_views", chunk_elements=chunk
        )
        for chunk in (10**6, 50, 1)
    ]
    assert 0 < results[0].top5 < 1
    for chunked in results[1:]:
        torch.testing.assert_close(chunked, results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_chunk_holds_something(name: str) -> None:
    with pytest.raises(ValueError, match="chunk_elements must be at least 1, not 0"):
        LOSSES[name](rows(11, 0), rows(11, 1), rows(17, 2), 0.1, 0)


@pytest.mark.parametrize("chunk", [20, 10**6])
def test_confident_anchors_keep_value_and_gradient(chunk: int) -> None:
    """A loss of 1e-14 in float32: the difference of two log-sum-exps would be zero."""
    z = torch.eye(4, requires_grad=True)
    loss = nt_xent(z, z.detach(), 0.03, chunk_elements=chunk)
    assert loss.item() == pytest.approx(6 * math.exp(-1 / 0.03), rel=1e-4)
    exact = z.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss, z)
    (expected,) = torch.autograd.grad(nt_xent(exact, exact.detach(), 0.03), exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-22)


@pytest.mark.slow  # 8 seconds
@pytest.mark.parametrize("name", LOSSES)
def test_inside_a_compiled_function(name: str) -> None:
    """The loop over tiles is left out of the graph; what stands around it is compiled."""
    inputs = [rows(11, seed, torch.float32) for seed in range(2)] + [rows(17, 2, torch.float32)]

    def loss(a: Tensor, b: Tensor, n: Tensor) -> Tensor:
        return 2 * LOSSES[name](a + 1, b, n, 0.2, 30)

    compiled = torch.compile(loss, backend="eager")
    results = [
        torch.autograd.grad(f(*inputs), inputs, allow_unused=True, materialize_grads=True)
        for f in (loss, compiled)
    ]
    torch.testing.assert_close(*results)


MEASURE = """
import re, sys, torch
from pathlib import Path
from sslkit.nn.functional import nt_xent
torch.set_num_threads(1)
half, dim = int(sys.argv[1]) // 2, int(sys.argv[2])
status = Path("/proc/self/status")
kib = lambda field: int(re.search(rf"{field}:\\s+(\\d+)", status.read_text())[1])
z = [torch.randn(half, dim).requires_grad_() for _ in range(2)]
nt_xent(torch.randn(4, dim).requires_grad_(), torch.randn(4, dim), 0.1).backward()
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = kib("VmRSS")
loss = nt_xent(*z, 0.1)
loss.backward()
assert all(x.grad.isfinite().all() and x.grad.abs().max() > 0 for x in z)
print(loss.item(), (kib("VmHWM") - before) / 1024)
"""


def loss_and_extra_mib(num_rows: int, dim: int) -> tuple[float, float]:
    """Of a forward and backward pass in a fresh process."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc")
    arguments = [sys.executable, "-c", MEASURE, str(num_rows), str(dim)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=1800)
    loss, mib = done.stdout.split()
    return float(loss), float(mib)


@pytest.mark.slow  # six seconds, most of them the import of torch
def test_memory_at_32_768_rows() -> None:
    """One matrix of similarities would be 4,096 MiB; the embeddings are 2."""
    loss, mib = loss_and_extra_mib(32_768, 16)
    assert loss > 10.0  # ln(32,767) = 10.4 and more, for unrelated views at a low temperature
    assert 16 < mib < 160


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_at_131_072_rows() -> None:
    """One matrix would be 65,536 MiB. Width 16 in place of 128, to take a minute or two."""
    loss, mib = loss_and_extra_mib(131_072, 16)
    assert loss > 11.0
    assert 16 < mib < 240
