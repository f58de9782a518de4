"""What `sslkit pack` prints when it is done."""

from __future__ import annotations

from sslkit.data.pack_format import PackFile

from .console import print_line


def print_pack(pack: PackFile) -> None:
    """The end of packing or of verifying, for a person."""
    for name, split in pack.description.splits().items():
        count, channels, height, width = split.shape
        replaced = f", {len(split.unreadable)} unreadable ones replaced" if split.unreadable else ""
        print_line(f"{name}: {count:,} images of {width} x {height} x {channels}{replaced}")
        for entry in split.unreadable[:5]:
            print_line(f"  {entry.image}: {entry.reason}; replaced by image {entry.replaced_by}")
    for note in pack.description.notes:
        print_line(f"warning: {note}")
    size = pack.path.stat().st_size
    print_line(f"{pack.path}: {size / 1e9:.3g} GB, fingerprints and checksums inside")
