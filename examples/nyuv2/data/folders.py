"""Folders of files: one file a sample and kind, paired by name, in natural order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError, MissingDataError


@dataclass(frozen=True)
class Kind:
    """One kind of file of a sample: the folder it lies in, and what its name may end in after what the sample's files share."""

    folder: str
    endings: tuple[str, ...]


def paired_files(root: Path, kinds: Mapping[str, Kind], *, depth: int = 0) -> list[dict[str, Path]]:
    """The files of every sample below `root`, by the keys of `kinds`, ordered as 2 < 10.

    Args:
        root: where the kinds' folders lie.
        kinds: the kinds of file.
        depth: of the folders between a kind's folder and its files.

    Raises:
        MissingDataError: a folder that is not there, or a file without its partner.
        DataError: folders without samples.
    """
    found = {key: _files(root / kind.folder, kind.endings, depth) for key, kind in kinds.items()}
    stems = sorted(set().union(*found.values()), key=_natural)
    if not stems:
        expected = ", ".join(f"{kind.folder}/{'*/' * depth}*{kind.endings[0]}" for kind in kinds.values())
        raise DataError(f"{root}: expected samples as {expected}, found an empty split; check the download")
    for key, kind in kinds.items():
        lacking = [stem for stem in stems if stem not in found[key]]
        if lacking:
            owner = next(files[lacking[0]] for files in found.values() if lacking[0] in files)
            raise MissingDataError(
                f"{root / kind.folder}: expected {lacking[0]}{kind.endings[0]} as the partner of "
                f"{owner}, found none ({len(lacking)} of {len(stems)} samples lack it); "
                "restore it or remove its partners"
            )
    return [{key: files[stem] for key, files in found.items()} for stem in stems]


def _files(folder: Path, endings: tuple[str, ...], depth: int) -> dict[str, Path]:
    if not folder.is_dir():
        raise MissingDataError(
            f"{folder}: expected a folder of {' or '.join(endings)} files, found none; restore it, or check how it is called"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*/" * depth + "*")):
        ending = next((ending for ending in endings if path.name.lower().endswith(ending.lower())), None)
        if ending is not None and not path.name.startswith("."):
            stem = path.relative_to(folder).as_posix()[: -len(ending)]
            if stem in files:
                raise DataError(f"{path}: expected one file a sample, found {files[stem].name} too; remove one")
            files[stem] = path
    return files


def _natural(stem: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", stem) if part)
