"""Files of torch.save from strangers: what they may call, and how large what they hold may be."""

from __future__ import annotations

import io
import linecache
import os
import pickle
import re
import struct
import traceback
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslkit.nn.torch_file import load_torch_file

PROTOCOL = b"\x80\x02"
BOMB = b"cbuiltins\nbytearray\n(\x8a\x05\x00\x00\x00\x00\x02tR"
"""Eight gigabytes, in a pickle."""


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def archive(pickled: bytes, name: str = "archive/data.pkl") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(name, pickled)
        file.writestr("archive/version", "3\n")
    return made.getvalue()


def loaded(tmp_path: Path, data: bytes) -> Any:
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    return load_torch_file(path)


def saved(content: Any, **options: Any) -> bytes:
    made = io.BytesIO()
    torch.save(content, made, **options)
    return made.getvalue()


# --- What is called -------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [archive, bytes], ids=["archive", "pickle"])
def test_no_file_is_read_that_a_file_names(tmp_path: Path, packed: Any) -> None:
    """torch lets files call `traceback.FrameSummary`, which reads the file of its first argument:
    an endless one fills the memory."""
    secret = tmp_path / "secret.py"
    secret.write_text("a secret\n")
    call = b"ctraceback\nFrameSummary\n(" + text(str(secret)) + b"K\x01" + text("x") + b"tR"
    with pytest.raises(ValueError, match=r"holds Python objects|damaged"):
        loaded(tmp_path, packed(PROTOCOL + call + b"."))
    assert str(secret) not in linecache.cache
    summary = traceback.FrameSummary(str(secret), 1, "x")
    with pytest.raises(ValueError, match=r"holds Python objects \(traceback.FrameSummary\)"):
        loaded(tmp_path, saved({"a": summary}))


class Registered:
    """What a plugin, or a module of torch, has told torch to trust."""


def test_what_was_imported_before_does_not_decide_what_loads(tmp_path: Path) -> None:
    torch.serialization.add_safe_globals([Registered])
    before = set(map(str, torch.serialization.get_safe_globals()))
    with pytest.raises(ValueError, match="holds Python objects"):
        loaded(tmp_path, saved({"a": Registered()}))
    assert set(map(str, torch.serialization.get_safe_globals())) == before
    assert loaded(tmp_path, saved({"a": 1})) == {"a": 1}
    assert set(map(str, torch.serialization.get_safe_globals())) == before


@pytest.mark.parametrize("name", ["archive/DATA.PKL", "archive/Data.pkl", "archive/data.pkL"])
def test_the_pickle_is_looked_through_in_whatever_letters_its_name_is(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match=r"holds Python objects \(bytearray\)"):
        loaded(tmp_path, archive(PROTOCOL + b"}" + text("a") + BOMB + b"s.", name))


def test_an_old_file_is_looked_through_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslkit.files._CHUNK_BYTES", 1000)  # a call may lie across two parts
    monkeypatch.setattr("sslkit.nn.torch_file._MAX_PICKLE_BYTES", 500)
    head = b"".join(pickle.dumps(part, 2) for part in (torch.serialization.MAGIC_NUMBER, 1001, {}))
    for padding in range(1000 - len(head) - 40, 1000 - len(head)):
        data = head + PROTOCOL + b"}" + text("a" * padding) + BOMB + b"s."
        with pytest.raises(ValueError, match=r"holds Python objects \(bytearray\)"):
            loaded(tmp_path, data)


def test_an_archive_with_two_lists_of_its_files_is_refused(tmp_path: Path) -> None:
    """Python reads the list before its end, torch the one whose place is said there."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", PROTOCOL + b"}" + text("a") + text("x" * 10**6) + b"s.")
        file.writestr("archive/version", "3\n")
    data = made.getvalue()
    end = data.rfind(b"PK\x05\x06")
    (offset,) = struct.unpack_from("<I", data, end + 16)
    harmless = data[offset:end].replace(b"data.pkl", b"data.xyz")
    for plain in re.finditer(b"PK\x01\x02", harmless):  # not compressed, and empty
        at = plain.start()
        harmless = harmless[: at + 10] + b"\0\0" + harmless[at + 12 :]
        harmless = harmless[: at + 16] + bytes(12) + harmless[at + 28 :]
    with pytest.raises(ValueError, match="damaged"):
        loaded(tmp_path, data[:end] + harmless + data[end:])


# --- How large it is ------------------------------------------------------------------------------


def laughs(levels: int, leaf: Any) -> Any:
    for _ in range(levels):
        leaf = {str(key): leaf for key in range(20)}
    return leaf


@pytest.mark.parametrize(
    "content",
    [
        laughs(7, {}), laughs(7, {"weight": torch.zeros(1)}), [[["x" * 1000] * 1000] * 1000],
        {"step": (torch.zeros(1).expand(2**20, 2**20),)}, {"a": ["x" * 10_000] * 10_000},
        {"a": torch.zeros(1).expand(10**7)},
        {f"{i}": torch.zeros(10**4) [:] for i in range(3)} | {"b": [torch.zeros(10**6)] * 200},
    ],
    ids=["blocks", "blocks of tensors", "lists", "stride 0", "a text", "some numbers", "views"],
)  # fmt: skip
def test_a_file_that_says_more_than_it_has_bytes_for_is_refused(
    tmp_path: Path, content: Any
) -> None:
    """Whoever copies, prints or walks through such a value takes memory without an end."""
    with pytest.raises(ValueError, match="says more than it has bytes for"):
        loaded(tmp_path, saved(content))


def test_what_is_nested_deeply_or_in_itself_is_refused(tmp_path: Path) -> None:
    for pickled in (b"]" * 10**5 + b"a" * (10**5 - 1) + b".", b"]q\x00h\x00a.",
                    b"}q\x00" + text("format") + b"h\x00s."):  # fmt: skip
        with pytest.raises(ValueError, match="nested more than 64 deep"):
            loaded(tmp_path, archive(PROTOCOL + pickled))


def test_what_networks_and_optimisers_save_is_loaded(tmp_path: Path) -> None:
    """Tied weights are in a file once, and in what it holds several times."""
    network = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300))
    tied = nn.ModuleList([network, network, network])
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 300)).sum().backward()
    optimizer.step()
    content = {
        "method": tied.state_dict(),
        "optimization": optimizer.state_dict(),
        "sizes": torch.Size([1, 2]),
        "row": torch.zeros(1, 5).expand(7, 5),
        "empty": OrderedDict(),
    }
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        found = loaded(tmp_path, saved(content, **options))
        torch.testing.assert_close(found["method"], dict(content["method"]), rtol=0, atol=0)
        assert found["sizes"] == (1, 2)
        assert set(found["optimization"]["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
        assert found["row"].shape == (7, 5)
    assert os.listdir(tmp_path) == ["x.pt"]  # noqa: PTH208
