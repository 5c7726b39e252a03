from __future__ import annotations

import sys
from pathlib import Path

import pytest

from amc_mobile.errors import InvalidInput
from amc_mobile.user_file import load_function, names_a_function


def test_a_function_may_use_modules_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "beside_user_file.py").write_text("VALUE = 41\n")
    (tmp_path / "mine.py").write_text("from beside_user_file import VALUE\ndef answer():\n    return VALUE + 1\n")
    path_before = list(sys.path)
    assert load_function(f"{tmp_path}/mine.py:answer")() == 42
    assert sys.path == path_before


def test_only_python_files_with_a_function_name_are_meant() -> None:
    assert names_a_function("a/b.py:make")
    assert not any(map(names_a_function, ("a/b.py", "timm:resnet", "a/b.py:2", "b.pyc:make", "")))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no file .*nothing\.py"):
        load_function(f"{tmp_path}/nothing.py:make")


def test_a_missing_function_is_answered_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def small(): ...\ndef large(): ...\n")
    with pytest.raises(InvalidInput, match="no function 'huge'; it has large, small"):
        load_function(f"{tmp_path}/mine.py:huge")


def test_an_error_inside_the_file_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("1 / 0\n")
    with pytest.raises(InvalidInput, match="ZeroDivisionError"):
        load_function(f"{tmp_path}/mine.py:make")
