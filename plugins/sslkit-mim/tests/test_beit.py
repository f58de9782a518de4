"""BEiT against closed forms and independent steps in float64, and what it takes for a tokenizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mim_setup import BATCH, FACTS, PATCHES, encoded, make, make_batch, vit
from safetensors.torch import save_file
from test_mae import normalised
from tokenizer_setup import CODES, write_tokenizer
from torch import Tensor

from sslkit import load_encoder
from sslkit.api import Batch, Progress, resolve_component
from sslkit.engine.display import Silent
from sslkit.errors import CheckpointError, RecipeError
from sslkit.experiment.restore import load_method
from sslkit.host.plugins import load_plugins
from sslkit.nn.masking import Blocks, block_masked
from sslkit.nn.safetensors_file import save
from sslkit.workflows.evaluate import evaluate_run
from sslkit.workflows.train import start
from sslkit.workflows.validate import validate

RECIPE = Path(__file__).with_name("one_view_vit.yaml")
FIRST, MASKED = Progress(0, 1, 1), 6  # 0.383 * 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "encoder.safetensors")


def beit(tokenizer: Path, **fields: Any) -> Any:
    return make("beit", min_block=3, tokenizer=str(tokenizer), **fields)


def loss_of(method: Any, batch: Batch) -> Tensor:
    loss: Tensor = method.objective(method.embed(batch), batch, FIRST).loss
    return loss


def masked_of(batch: Batch) -> Tensor:
    return block_masked(batch.random, (4, 4), MASKED, Blocks(least=3))


# --- Closed forms --------------------------------------------------------------------------------


def test_knowing_nothing_costs_the_logarithm_of_the_codes(tokenizer: Path) -> None:
    """ln K where all scores are equal: ln 8192 = 9.0109 in the paper."""
    method, batch = beit(tokenizer), make_batch()
    with torch.no_grad():
        method.predict.weight.zero_()
        method.predict.bias.fill_(0.7)
    assert loss_of(method, batch).item() == pytest.approx(math.log(CODES), abs=1e-12)
    slot = resolve_component(
        load_plugins().registry, "method", {"name": "beit", "min_block": 3, "tokenizer": tokenizer}
    )
    torch.manual_seed(0)
    fresh = slot.build(vit(), FACTS).double()
    assert loss_of(fresh, batch).item() == pytest.approx(math.log(CODES), abs=0.1)


def test_the_loss_is_of_masked_patches_alone(tokenizer: Path) -> None:
    method, batch = beit(tokenizer), make_batch()
    masked, codes = masked_of(batch), method.codes(batch.views[0])
    assert (masked.sum(1) == MASKED).all()
    before = loss_of(method, batch)
    for where, changes in ((~masked, False), (masked, True)):
        other = torch.where(where, (codes + 1) % CODES, codes)
        method.codes = lambda images, other=other: other
        assert (abs(loss_of(method, batch).item() - before.item()) > 1e-3) == changes


def test_right_codes_are_counted(tokenizer: Path) -> None:
    method, batch = beit(tokenizer), make_batch()
    codes = method.codes(batch.views[0])
    with torch.no_grad():
        method.predict.weight.zero_()
        method.predict.bias.zero_()[3] = 1.0
    out = method.objective(method.embed(batch), batch, FIRST)
    share = (codes[masked_of(batch)] == 3).double().mean()
    assert float(dict(out.metrics)["masked_accuracy"]) == pytest.approx(float(share), abs=1e-12)
    used = codes.flatten().bincount(minlength=CODES).double() / codes.numel()
    wanted = math.exp(-sum(p * math.log(p) for p in used.tolist() if p))
    assert float(dict(out.metrics)["code_perplexity"]) == pytest.approx(wanted, rel=1e-6)


# --- Steps against independent ones --------------------------------------------------------------


def slow_loss(w: dict[str, Tensor], codes: Tensor, batch: Batch) -> Tensor:
    """An image and a masked patch at a time."""
    terms = []
    rows = zip(normalised(batch.views[0]), masked_of(batch), codes.tolist(), strict=True)
    for image, hidden, wanted in rows:
        numbers = [n for n in range(PATCHES) if hidden[n]]
        tokens = dict.fromkeys(numbers, w["mask_token"][0, 0])
        x = encoded(w, image, list(range(PATCHES)), tokens)[1:]
        for number in numbers:
            scores = x[number] @ w["predict.weight"].T + w["predict.bias"]
            terms.append(torch.exp(scores).sum().log() - scores[wanted[number]])
    assert len(terms) == BATCH * MASKED
    return sum(terms, torch.zeros(())) / len(terms)


def test_steps_are_those_of_a_slow_reference(tokenizer: Path) -> None:
    """Loss, gradients and weights over three steps; the tokenizer stays as it is."""
    method = beit(tokenizer)
    frozen = {name: v.clone() for name, v in method.tokenizer.state_dict().items()}
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert not any(name.startswith("tokenizer") for name in trained)
    mine = {name: p.detach().clone() for name, p in method.named_parameters()}
    for number in range(3):
        batch = make_batch(number)
        # The nearest code by brute force.
        network = method.tokenizer
        latents = network.latents(network.hidden(batch.views[0])).detach()
        codes = torch.cdist(latents.flatten(1, 2), network.codebook[None]).argmin(2)
        for name in trained:
            mine[name].requires_grad_()
        wanted, found = slow_loss(mine, codes, batch), loss_of(method, batch)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-11)
        gradients = torch.autograd.grad(wanted, [mine[name] for name in trained])
        theirs = torch.autograd.grad(found, list(trained.values()))
        for name, one, other in zip(trained, gradients, theirs, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-11, msg=name)
            mine[name] = mine[name].detach() - 0.5 * one
            with torch.no_grad():
                trained[name].sub_(0.5 * other)
        method.after_step(Progress(number + 1, 3, 3), None)
    for name, value in method.tokenizer.state_dict().items():
        assert torch.equal(value, frozen[name]), name


def test_micro_batches_are_the_whole_batch(tokenizer: Path) -> None:
    method, batch = beit(tokenizer), make_batch()
    parts = [method.embed(batch.select(slice(i, i + 2))) for i in (0, 2, 4)]
    for name, value in method.embed(batch).items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value)


def test_codes_are_the_same_in_training_and_in_half_precision(tokenizer: Path) -> None:
    method, images = beit(tokenizer).float(), make_batch().views[0].float()
    wanted = method.eval().codes(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.train().codes(images), wanted)


def test_a_tokenizer_of_another_stride_sees_images_of_its_own_size(tmp_path: Path) -> None:
    """One code for each patch of 4 px: squares of 2 px are of an image of half the side, as in the
    paper (patches of 16, squares of 8)."""
    method, batch = beit(write_tokenizer(tmp_path / "t.safetensors", stride=2)), make_batch()
    assert method.codes(batch.views[0]).shape == (BATCH, PATCHES)
    seen = []
    method.tokenizer.codes_of = lambda x: seen.append(x) or torch.zeros(len(x), 4, 4).long()
    even = torch.ones_like(batch.views[0]) * 0.25
    method.codes(even)
    torch.testing.assert_close(seen[0], torch.full((BATCH, 3, 8, 8), 0.25), check_dtype=False)
    shown = method.pictures(make_batch())
    assert all(images.shape == batch.views[0].shape for images in shown.values())


def test_pictures_fill_masked_patches_with_what_was_predicted(tokenizer: Path) -> None:
    method, batch = beit(tokenizer), make_batch()
    masked, codes = masked_of(batch), method.codes(batch.views[0])
    with torch.no_grad():
        method.predict.weight.zero_()
        method.predict.bias.zero_()[3] = 1.0
    shown = method.pictures(batch)
    assert [*shown] == ["image", "seen", "codes", "reconstruction"]
    filled = torch.where(masked, 3, codes).view(BATCH, 4, 4)
    network = method.tokenizer
    torch.testing.assert_close(shown["codes"], network.images_of(codes.view(BATCH, 4, 4)))
    torch.testing.assert_close(shown["reconstruction"], network.images_of(filled))
    gone = (shown["seen"] == 0.5).all(1).view(BATCH, 4, 4, 4, 4)
    assert torch.equal(gone.all(4).all(2).flatten(1), masked)
    assert all(images.min() >= 0.0 and images.max() <= 1.0 for images in shown.values())


# --- The tokenizer's file ------------------------------------------------------------------------


HOW = "; set it to the run of a tokenizer, such as one of cpu/vq_tokenizer_cifar10_short"


def refused(path: Path | None, said: str) -> None:
    """As the method is built, before the first step; what is missing is said before that."""
    fields: dict[str, Any] = {"name": "beit", "min_block": 3}
    if path is not None:
        fields["tokenizer"] = str(path)
    slot = resolve_component(load_plugins().registry, "method", fields)
    found = list(slot.cls.problems(slot.config, FACTS))
    assert found == ([("tokenizer", f"is missing{HOW}")] if path is None else [])
    with pytest.raises(RecipeError, match=r"^method\.tokenizer: ") as raised:
        slot.build(vit(), FACTS)
    text = str(raised.value)
    assert said in text
    assert text.endswith(HOW)
    assert "\n" not in text
    assert len(text) < 600


def test_a_file_that_is_no_tokenizer_is_refused_in_a_line(tmp_path: Path) -> None:
    refused(None, "method.tokenizer: is missing")
    refused(tmp_path / "none.safetensors", "none.safetensors: no such file; set it")
    refused(tmp_path, "encoder.safetensors: no such file (a run has it once it is finished)")
    (tmp_path / "x.pth").write_bytes(b"\x80\x02cos\nsystem\n")
    refused(tmp_path / "x.pth", "x.pth: is no .safetensors file")
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    refused(tmp_path / "x.safetensors", "x.safetensors: cannot be read as an encoder: ")
    save_file({"a": torch.zeros(2)}, tmp_path / "y.safetensors")
    refused(tmp_path / "y.safetensors", "y.safetensors: not written by sslkit")
    grey = write_tokenizer(tmp_path / "grey.safetensors", channels=1)
    refused(grey, "its images have 1 channel(s), those of the data 3")


def test_a_damaged_file_and_a_description_that_does_not_fit_are_refused(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "t.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(content)
    refused(tmp_path / "damaged.safetensors", "is damaged")
    for field, old, new in ((b"codes", b"16", b"61"), (b"width", b"6", b"9")):
        before, after = (b'\\"%s\\": %s' % (field, value) for value in (old, new))
        changed = path.read_bytes().replace(before, after)
        assert changed != path.read_bytes()
        changed = changed.replace(b'\\"digested\\": true', b'\\"digested\\":false')
        changed = changed.replace(b'"sslkit.sha256"', b'"sslkit.sha255"')
        (tmp_path / "other.safetensors").write_bytes(changed)
        refused(tmp_path / "other.safetensors", "other.safetensors: cannot be read as an encoder: ")


@pytest.mark.slow  # 3 seconds
def test_a_checkpoint_goes_on_with_the_tokenizer_that_it_was_trained_with(tmp_path: Path) -> None:
    overrides = ["train.max_steps=1", "evaluate=[]", f"runs_dir={tmp_path}"]
    same, other = (write_tokenizer(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    block = "method={{name: beit, min_block: 3, tokenizer: {}}}"
    run = start(RECIPE, [block.format(same), *overrides], display=Silent()).run_dir
    load_method(run, whole=True)
    overrides[0] = "train.max_steps=2"
    start(RECIPE, [block.format(same), *overrides], fork=run, display=Silent())
    with pytest.raises(CheckpointError, match=r"2\.safetensors is another tokenizer than the one"):
        start(RECIPE, [block.format(other), *overrides], fork=run, display=Silent())


@pytest.mark.slow  # 7 seconds
def test_an_encoder_is_measured_without_the_tokenizer(tmp_path: Path) -> None:
    """An evaluation, a checkpoint that is exported or loaded: all were refused where the file had
    moved. Training goes on with the tokenizer that it began with, or not at all."""
    path = write_tokenizer(tmp_path / "tokenizer.safetensors")
    block = f"method={{name: beit, min_block: 3, tokenizer: {path}}}"
    overrides = ["train.max_steps=2", "evaluate=[{name: knn, k: 5}]", f"runs_dir={tmp_path}"]
    begun = [block, *overrides, "train.checkpoint_every_steps=1"]
    run = start(RECIPE, begun, display=Silent()).run_dir
    wanted = load_encoder(run).state_dict()
    with_it = evaluate_run(run, None, (), Silent()).results.rows
    for gone in (False, True):
        write_tokenizer(path, seed=2)  # another one
        if gone:
            path.unlink()
        (run / "encoder.safetensors").unlink(missing_ok=True)
        found = load_encoder(run).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
        assert evaluate_run(run, None, (), Silent()).results.rows == with_it
    with pytest.raises(CheckpointError, match="do not fit the recipe"):
        evaluate_run(run, None, ["method={name: mae}"], Silent())
    (run / "results.json").unlink()
    max((run / "checkpoints").iterdir()).unlink()
    with pytest.raises(RecipeError, match=r"yaml:\d+:\d+: method\.tokenizer: .*such file"):
        start(None, resume=str(run), display=Silent())
    write_tokenizer(path, seed=2)
    with pytest.raises(CheckpointError, match="is another tokenizer than the one"):
        start(None, resume=str(run), display=Silent())
    write_tokenizer(path)
    assert start(None, resume=str(run), display=Silent()).status == "finished"


@pytest.mark.parametrize(
    ("channels", "said"), [(3, None), (1, ": method.tokenizer: {}: its images have 1 channel")]
)
def test_a_tokenizer_is_looked_at_before_anything_is_trained(
    channels: int, said: str | None, tmp_path: Path
) -> None:
    path = write_tokenizer(tmp_path / "encoder.safetensors", channels=channels)
    block = f"method={{name: beit, min_block: 3, tokenizer: {path}}}"
    problems = validate(RECIPE, [block]).problems
    if said is None:
        assert problems == ()
    else:
        assert len(problems) == 1
        assert said.format(path) in problems[0]


def test_a_description_of_a_huge_network_takes_no_memory(tmp_path: Path) -> None:
    """A file of a few bytes must not make its reader fill 8 GiB."""
    backbone = {"name": "vq_autoencoder", "codes": 1 << 16, "code_dim": 1024, "width": 4096}
    described: dict[str, Any] = {"backbone": backbone, "preprocess": {}, "recipe_hash": "0"}
    described |= {"channels": 3, "image_size": 16}
    path = tmp_path / "huge.safetensors"
    save(path, {"codebook": torch.zeros(2, 2)}, described)
    refused(path, "far more than its 4 weights")


def test_an_encoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    network = vit()
    described: dict[str, Any] = {"backbone": {"name": "timm", **network.config.model_dump()}}
    described |= {"preprocess": {}, "recipe_hash": "0", "channels": 3, "image_size": 16}
    save(tmp_path / "encoder.safetensors", network.export_state(), described)
    refused(tmp_path, "encoder.safetensors: is a TimmBackbone, which makes no codes")


@pytest.mark.slow  # three small runs
def test_one_recipe_trains_the_tokenizer_that_another_uses(tmp_path: Path) -> None:
    network = "{name: vq_autoencoder, stride: 4, codes: 16, code_dim: 4, width: 8, blocks: 1}"
    shared = ["train.max_steps=4", "evaluate=[{name: collapse}]", f"runs_dir={tmp_path}"]
    shared += ["callbacks=[{name: reconstructions, num_images: 2}]"]
    trained = start(
        RECIPE, ["method={name: vq_tokenizer}", f"backbone={network}", *shared], display=Silent()
    )
    assert trained.metrics["train/code_perplexity"] > 1.0
    own = f"method={{name: beit, min_block: 3, tokenizer: {trained.run_dir}}}"
    results = [start(RECIPE, [own, *shared], display=Silent()) for _ in range(2)]
    for result in results:
        assert result.status == "finished"
        assert (result.run_dir / "figures" / "reconstructions.png").exists()
    assert results[0].metrics["train/loss"] == results[1].metrics["train/loss"]
    assert abs(results[0].metrics["train/loss"] - math.log(16)) < 0.5
