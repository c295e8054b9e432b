"""Folders of pictures: one file a sample and kind, paired by stem, in natural order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError, MissingDataError


@dataclass(frozen=True)
class Kind:
    """One kind of file of a sample: its folder's name and the suffixes its files may have."""

    folder: str
    suffixes: tuple[str, ...]


def paired_files(split: Path, kinds: Mapping[str, Kind]) -> list[dict[str, Path]]:
    """The files of every sample below `split`, by the keys of `kinds`, ordered as 2 < 10.

    Raises:
        MissingDataError: a folder that is not there, or a file without its partner.
        DataError: folders without samples.
    """
    found = {key: _files(split / kind.folder, kind.suffixes) for key, kind in kinds.items()}
    stems = sorted(set().union(*found.values()), key=_natural)
    if not stems:
        expected = ", ".join(f"{kind.folder}/*{kind.suffixes[0]}" for kind in kinds.values())
        raise DataError(f"{split}: expected samples as {expected}, found an empty split; check the download")
    for key, kind in kinds.items():
        lacking = [stem for stem in stems if stem not in found[key]]
        if lacking:
            owner = next(files[lacking[0]] for files in found.values() if lacking[0] in files)
            raise MissingDataError(
                f"{split / kind.folder}: expected {lacking[0]}{kind.suffixes[0]} as the partner of "
                f"{owner}, found none ({len(lacking)} of {len(stems)} samples lack it); "
                "restore it or remove its partners"
            )
    return [{key: files[stem] for key, files in found.items()} for stem in stems]


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: expected a folder of {' or '.join(suffixes)} files, found none")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in files:
                raise DataError(f"{path}: expected one file a sample, found {files[path.stem].name} too; remove one")
            files[path.stem] = path
    return files


def _natural(stem: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", stem) if part)
