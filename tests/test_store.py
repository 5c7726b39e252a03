"""Files are whole or absent, and say which format they are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from amc_mobile.errors import CorruptFile
from amc_mobile.store import read_json, replacing, write_json


def test_a_document_comes_back_with_its_version(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1.5}, format_version=2)
    assert read_json(tmp_path / "a.json", format_version=2) == {"format_version": 2, "x": 1.5}


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {}, format_version=3)
    with pytest.raises(CorruptFile, match="format 3"):
        read_json(tmp_path / "a.json", format_version=2)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', '{"format_version": "1"}'])
def test_a_broken_document_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CorruptFile):
        read_json(tmp_path / "a.json", format_version=1)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_nan_never_reaches_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")}, format_version=1)
    assert not (tmp_path / "a.json").exists()


def test_files_get_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", {}, format_version=1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
