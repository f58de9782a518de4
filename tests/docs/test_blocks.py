"""No block of a page goes untested: it is executed (`test_pages.py`), is a recipe or a file, or is
read here as the programs read it."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from page_commands import check_commands, command_of, started_commands
from page_python import names_made, unknown_names
from page_states import small_quickstart
from pages import Block, all_blocks, blocks, name, pages, unread_fences

from sslkit.recipe import load_recipe

CODE = {"bash", "python", "toml", "diff"}
LANGUAGES = CODE | {"yaml", "text", "json"}
TESTED = {"run", "parse", "file", "append", "part of", "same as", "cell"}
PARSED = [block for block in all_blocks() if "parse" in block.marks]

needs_bash = pytest.mark.skipif(not os.access("/bin/bash", os.X_OK), reason="no /bin/bash here")


def test_every_block_is_tested() -> None:
    code = [block for block in all_blocks() if block.language in CODE]
    assert [str(block) for block in code if not TESTED & block.marks.keys()] == []


def test_no_block_is_written_so_that_no_test_sees_it() -> None:
    assert {block.language for block in all_blocks()} <= LANGUAGES
    assert {name(page): found for page in pages() if (found := unread_fences(page))} == {}


def test_what_is_not_executed_says_why() -> None:
    assert [str(block) for block in PARSED if not block.marks["parse"]] == []


@pytest.mark.parametrize("page", pages(), ids=name)
def test_the_files_of_a_page_are_used_below_them(page: Path) -> None:
    """By a block that is executed."""
    order = [block.marks.keys() for block in blocks(page)]
    written = [i for i, marks in enumerate(order) if {"file", "append"} & marks]
    executed = [i for i, marks in enumerate(order) if {"run", "output of"} & marks]
    assert not written or (executed and written[-1] < executed[-1])


@needs_bash
@pytest.mark.parametrize("block", [b for b in PARSED if b.language == "bash"], ids=str)
def test_programs_take_the_commands_that_are_not_executed(block: Block) -> None:
    check_commands(block.text)


@pytest.mark.parametrize("block", [b for b in PARSED if b.language == "python"], ids=str)
def test_the_names_of_a_fragment_exist(block: Block) -> None:
    earlier = [b for b in blocks(block.page) if b.language == "python" and b.line < block.line]
    known = {made for each in earlier for made in names_made(each.text)}
    assert unknown_names(block.text, known) == []


INLINE = re.compile(r"(?<!`)`(sslkit [a-z][^`]*)`(?!`)")


@pytest.mark.parametrize("page", pages(), ids=name)
def test_commands_in_the_text_of_a_page_exist_with_their_options(page: Path) -> None:
    """Of those in a line: what stands for a value (`RUN`, `...`) is not looked at."""
    for text in INLINE.findall(page.read_text(encoding="utf-8")):
        command, rest = command_of(shlex.split(text)[1:])
        known = {option for parameter in command.params for option in parameter.opts}
        given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert given <= known | {"--help", "-h", "--debug"}, text


@needs_bash
def test_a_shell_reads_the_commands() -> None:
    assert started_commands(
        "for k in 5 10; do\n  sslkit run quickstart -o evaluate.0.k=$k \\\n    -o 'a=[]'\ndone\n"
        'sslkit export "$(sslkit runs best x)" --format timm | .venv/bin/pip install x  # why\n'
    ) == [
        ["sslkit", "run", "quickstart", "-o", "evaluate.0.k=5", "-o", "a=[]"],
        ["sslkit", "run", "quickstart", "-o", "evaluate.0.k=10", "-o", "a=[]"],
        ["sslkit", "runs", "best", "x"],
        ["sslkit", "export", "OUTPUT", "--format", "timm"],
        ["pip", "install", "x"],
    ]


@needs_bash
@pytest.mark.parametrize(
    "line",
    [
        "sslkit rum quickstart",
        "sslkit runs beast eval/knn/top1",
        "sslkit run quickstart --repeat",
        "sslkit run quickstart --nproc four",
        "sslkit run no_such_recipe",
        "sslkit run recipes/no_such_recipe.yaml",
        "sslkit run quickstart -o train.epoch=5",
        "sslkit run quickstart -o train.epochs=many",
        "sslkit run quickstart -o method.loss.temperature=-1",
        "sslkit run --resume RUN -o train.epoch=5",
        "sslkit eval RUN --protocol kmn",
        "sslkit eval RUN --protocol linear -o evaluate.0.k=5",
        "sslkit eval --backbone resnet51 --recipe quickstart",
        "sslkit compare quickstart A --vary optimizer.rate=1,2",
        "sslkit compare quickstart --match epoch",
        "sslkit compare quickstart --devices gpu",
        "sslkit pack '{name: digit}' --out x",
        "sslkit export RUN --format keras",
        "sslkit slurm quickstart --node 2",
        "sslkit run 'quickstart",
        "srun -n 2 sslkit run quickstart --resumes auto",
        "torchrun --nproc-per-nodes 2 -m sslkit run quickstart",
        "torchrun --nproc-per-node 2 -m sslkit run quickstart -o train.epoch=5",
        "torchrun --nproc-per-node 2 train.py",
        "make quickstrat",
        "pip install --group tests",
        "pip install -e plugins/sslkit-none",
        "pip install sslkit-none",
        "python -m pytest tests/none/test_none.py",
        "python -m tests.bits again HEAD",
        "python -m tests.none",
        "python train.py",
        "conda install sslkit",
    ],
)
def test_a_command_that_would_be_refused_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check_commands(line)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class X(Loss):\n    def forward(self, a: Tensor):\n        return F.relu(a)", []),
        ("x = F.rellu(torch.zeros(1))", ["torch.nn.functional.rellu"]),
        ("class X(NoLoss): ...", ["NoLoss"]),
        ("from sslkit.api import Lost", ["sslkit.api.Lost"]),
        ("import sslkit\nsslkit.load_encodr('x')", ["sslkit.load_encodr"]),
        ("import sslkit.nn.functional\nfrom sslkit.nn import functional", []),
        ("print(made, [y for y in made])", []),
    ],
)
def test_a_name_that_is_not_there_is_found(text: str, expected: list[str]) -> None:
    assert unknown_names(text, {"made"}) == expected


def test_the_small_quickstart_has_the_steps_of_the_shipped_one(tmp_path: Path) -> None:
    """So that the pages may name its checkpoints and its fields."""
    path = tmp_path / "quickstart.yaml"
    path.write_text(small_quickstart(), encoding="utf-8")
    small, shipped = load_recipe(path), load_recipe("quickstart")
    assert (small.name, small.seed) == (shipped.name, shipped.seed)
    assert (small.schedule, small.optimizer) == (shipped.schedule, shipped.optimizer)
    assert small.train.model_dump(exclude={"precision"}) == shipped.train.model_dump(
        exclude={"precision"}
    )
