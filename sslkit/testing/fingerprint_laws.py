"""What a data source promises of its data: a fingerprint, and what it says of what is missing or
damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sslkit.api import DataSource, UnreadableImageError
from sslkit.errors import SSLKitError, failure_of

from .dataset_bench import BY_HAND, Contents, contents, opened, positions
from .interpreters import TORCH, in_another_interpreter
from .laws import LawBrokenError, UntriedError, law, refuse
from .reader_laws import OPEN, READ, ReaderLaws
from .small_runs import listed
from .subject import is_importable, plugin_module

_FILES = 6
"""Files that are changed one at a time; of more, all are."""
_PLACES = 4
"""Places of a small file that are changed, one at a time."""
_LARGE, _MANY_PLACES = 1 << 20, 64
"""Bytes of a file that is changed at many places at once."""
_FINGERPRINTS = """
import importlib, json, sys
from sslkit import installed_components
module, name, saved = sys.argv[1:]
cls = importlib.import_module(module)
for part in name.split("."):
    cls = getattr(cls, part)
context = {"registry": installed_components()}
source = cls(cls.Config.model_validate(json.loads(saved), context=context))
readers = [source.open("train"), source.open("test")]
sys.__stdout__.write("\\n" + json.dumps([r and r.fingerprint() for r in readers]))
"""


class FingerprintLaws(ReaderLaws):
    """The laws of `SplitReader.fingerprint`, and of errors."""

    @law(
        "hash what the data is: neither times, nor addresses of objects, nor the order of a set",
        needs=(*READ, "opens-the-same-again"),
    )
    def fingerprint_repeats(self) -> None:
        """The fingerprint is a short text, the same however often it is asked for and the data are
        opened."""
        for name, reader in self.splits():
            first = reader.fingerprint()
            odd = not isinstance(first, str) or not 0 < len(first) <= 128
            refuse(odd, f"the fingerprint of {name} is {first!r:.200}")
            source = self.source()
            again = source.open("train") if name == "train" else source.open("test")
            others = {reader.fingerprint(), again.fingerprint() if again else ""} - {first}
            refuse(others, f"the fingerprint of {name} is {first}, then {', '.join(others)}")

    @law(
        "hash with hashlib, and sort sets: hash() and the order of sets differ between processes",
        needs=(*READ, "opens-the-same-again", "fingerprint-repeats"),
        slow=True,
    )
    def fingerprint_is_that_of_other_processes(self) -> None:
        """Another process finds the same fingerprint, so that a resumed run knows its data."""
        slot = self.subject.slot
        module = plugin_module(slot)
        if not is_importable(module):
            raise UntriedError(f"{module} is no file that another process can import")
        saved = json.dumps({k: v for k, v in slot.dump().items() if k != "name"})
        printed = in_another_interpreter(
            _FINGERPRINTS,
            module,
            slot.cls.__qualname__,
            saved,
            what="another process cannot open it",
            prepared=TORCH,
        )
        found = json.loads(printed.rpartition("\n")[2])
        mine = [self.train.fingerprint(), self.test.fingerprint() if self.test else None]
        refuse(found != mine, f"{mine} here, {found} there")

    @law(
        "hash what samples are made of and paths below the folder: neither times nor whole paths",
        needs=(*READ, "opens-the-same-again", "fingerprint-repeats"),
    )
    def fingerprint_is_that_of_a_copy(self) -> None:
        """Copies of its files, in another place and written at another time, have the same
        fingerprint and the same keys: they are the same data."""
        fields, _ = self.copied("copied")
        copied, reader = opened(self.source(**fields)), self.train
        one, other = reader.fingerprint(), copied.fingerprint()
        refuse(one != other, f"{one}, of a copy {other}")
        keys = [[each.key(index) for index in positions(reader)] for each in (reader, copied)]
        refuse(keys[0] != keys[1], f"the key {keys[0][0]!r} became {keys[1][0]!r}")

    @law(
        "hash the content that samples are made of (a part of it, where there is much), and every "
        "field that changes samples",
        needs=(*READ, "opens-the-same-again", "fingerprint-repeats"),
    )
    def fingerprint_changes_with_the_data(self) -> str:
        """The fingerprint changes when a file of the data changes or goes (those that its fields
        name are copied and changed), or a field by which samples are made; or the source refuses
        what is changed."""
        before, first = contents(self.train), self.train.fingerprint()
        changed: list[str] = []
        for words, source in self._changes():
            after = _opened_anyway(source)
            if after is not None and after[0] == before:
                continue
            changed += [words] * (words not in changed)
            if after is None:
                continue
            refuse(after[1] == first, f"the data changed with {words}, and the fingerprint did not")
        if not changed or self.beyond_reach:
            reason = self.beyond_reach or "the kit found nothing of it to change"
            raise UntriedError(f"{reason}: {BY_HAND}")
        return f"noticed: {listed(changed)}"

    def _changes(self) -> Iterator[tuple[str, Callable[[], DataSource]]]:
        """(what is changed, the source of the changed data)."""
        if not self.named.paths:
            for name, value in self.other_fields():
                fields = {name: value}
                yield f"{name}: {value}", lambda given=fields: self.source(**given)  # type: ignore[misc]
            return
        fields, files = self.copied("changed")
        for group in _groups(files):
            kept = {file: file.read_bytes() for file in group}
            words = group[0].name if len(group) == 1 else f"{len(group)} files"
            for other in _others(kept):
                for file, content in other.items():
                    file.write_bytes(content)
                yield words, lambda: self.source(**fields)
            for file, whole in kept.items():
                file.write_bytes(whole)
            group[0].unlink()
            yield f"{group[0].name} gone", lambda: self.source(**fields)
            group[0].write_bytes(kept[group[0]])

    @law(
        "raise DataError with the field, the path and what was expected, in one line",
        needs=OPEN,
    )
    def a_missing_path_is_one_line(self) -> str:
        """Where a path does not exist, `open` raises an error of one line that names it."""
        self.refuse_no_files()
        missing = self.subject.folder / "no-such-thing"
        elsewhere = self.named.moved(lambda path: missing if path.exists() else missing / path.name)
        for field, value in elsewhere.items():
            try:
                source = self.source(**{field: value})
                lengths = [len(opened(source)), len(source.open("test") or ())]
            except SSLKitError as error:
                text = str(error)
                refuse("\n" in text, f"{field}: {len(text.splitlines())} lines")
                refuse("no-such-thing" not in text, f"{field}: {text!r} does not name the path")
            except Exception as error:
                raise LawBrokenError(f"{field}: {failure_of(error)}") from error
            else:
                known = [len(self.train), len(self.test or ())]
                refuse(lengths != known, f"{field}: it opened {lengths[0]} samples of nothing")
        return ", ".join(elsewhere)

    @law(
        "catch what decoders raise, and raise UnreadableImageError for the sample, or DataError "
        "from open where the whole is damaged",
        needs=(*READ, "fingerprint-changes-with-the-data"),
    )
    def damage_is_said(self) -> str:
        """Where a file is cut off, `read` raises UnreadableImageError for what is damaged, or
        `open` an error of one line: one image does not end a run."""
        fields, files = self.copied("damaged")
        said = []
        for file in _spread(files):
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) // 2])
            try:
                said.append(_damage(self.source(**fields)))
            except Exception as error:
                raise LawBrokenError(f"half of {file.name}: {failure_of(error)}") from error
            file.write_bytes(whole)
        return listed(sorted(set(said)))


def _spread(files: list[Path]) -> list[Path]:
    """Some of the files, from the first to the last."""
    full = [file for file in files if file.stat().st_size]
    step = max(1, -(-len(full) // _FILES))
    return full[::step]


def _groups(files: list[Path]) -> Iterator[list[Path]]:
    """Files that are changed together: each by itself, but of many with one ending all, since a
    fingerprint may cover a part of them."""
    full = [file for file in files if file.stat().st_size]
    for ending in dict.fromkeys(file.suffix for file in full):
        alike = [file for file in full if file.suffix == ending]
        yield from ([file] for file in alike) if len(alike) <= _FILES else [alike]


def _others(kept: Mapping[Path, bytes]) -> Iterator[dict[Path, bytes]]:
    """Other contents of files: of a small one at one place after the other, since no part of it is
    known to be of a sample."""
    (file, whole), *others = kept.items()
    alone = not others and len(whole) <= _LARGE
    for change in range(_PLACES if alone else 1):
        yield {file: _negated(whole, change) for file, whole in kept.items()}
    if alone:
        yield from ({file: other} for other in _other_texts(whole))


def _other_texts(whole: bytes) -> Iterator[bytes]:
    """A text with another digit in some lines, at their end and at their start, and without its
    last line: what is still read, where bits that are turned are no text."""
    lines = whole.splitlines(keepends=True)
    try:
        whole.decode()
    except UnicodeDecodeError:
        return
    for place in range(_PLACES):
        number = place * (len(lines) - 1) // max(_PLACES - 1, 1)
        digits = [at for at, byte in enumerate(lines[number]) if chr(byte).isdigit()]
        for at in dict.fromkeys(digits[-1:] + digits[:1]):
            other = bytearray(lines[number])
            other[at] = other[at] ^ 1
            yield b"".join([*lines[:number], bytes(other), *lines[number + 1 :]])
    yield b"".join(lines[:-1])


def _negated(whole: bytes, change: int) -> bytes:
    """The content of a file with the bits of a few bytes turned: at one of some places, and of a
    large one at many."""
    data, size = bytearray(whole), len(whole)
    if size > _LARGE:
        places = [number * size // _MANY_PLACES for number in range(1, _MANY_PLACES)]
    else:
        places = [(change * 2 + 1) * size // (2 * _PLACES)] if change else [size // 2]
    for at in places:
        data[at : at + 4] = bytes(255 - value for value in data[at : at + 4])
    return bytes(data)


def _opened_anyway(make: Callable[[], DataSource]) -> tuple[Contents, str] | None:
    """What a source of changed data gives, and its fingerprint; None where it refuses them."""
    try:
        reader = opened(make())
        return contents(reader), reader.fingerprint()
    except Exception:  # it noticed: in which words is another law's
        return None


def _damage(source: DataSource) -> str:
    """What is said of damaged data. Raises what else is raised."""
    try:
        readers = [opened(source), source.open("test")]
    except (SSLKitError, LawBrokenError) as error:
        refuse("\n" in str(error), "an error of several lines")
        return "refused when it is opened"
    damaged = 0
    for reader in filter(None, readers):
        for index in positions(reader):
            try:
                reader.read(index)
            except (UnreadableImageError, OSError, SSLKitError):
                damaged += 1
    return "samples that cannot be read" if damaged else "samples of other content"
