from __future__ import annotations

from dataclasses import replace

import pytest

from amc_mobile.device.conditions import PROTOCOL_VERSION, Conditions
from amc_mobile.errors import InvalidInput

HERE = Conditions(
    device="host", soc="Abacus 9", os="Linux 6", runtime="tflite", runtime_version="2.3.0", library_sha256="ab",
    delegate="XNNPACK", threads=2, cores="0-3", clock_mode="performance",
)  # fmt: skip


def test_conditions_survive_their_document() -> None:
    assert Conditions.from_document(HERE.to_document()) == HERE
    assert HERE.protocol_version == PROTOCOL_VERSION


@pytest.mark.parametrize("name", sorted(HERE.to_document()))
def test_every_field_changes_the_key(name: str) -> None:
    value = getattr(HERE, name)
    other = replace(HERE, **{name: value + 1 if isinstance(value, int) else value + "x"})
    assert other.key != HERE.key
    assert list(HERE.differences(other)) == [name]
    assert HERE.differences(other)[name] == (value, getattr(other, name))


def test_equal_conditions_have_one_key() -> None:
    assert replace(HERE).key == HERE.key
    assert HERE.differences(replace(HERE)) == {}


@pytest.mark.parametrize(
    "change", [{"threads": True}, {"threads": "2"}, {"cores": None}, {"extra": 1}, {"protocol_version": 1.0}]
)
def test_documents_with_other_fields_or_types_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="conditions"):
        Conditions.from_document(HERE.to_document() | change)


def test_a_missing_field_and_no_document_at_all_are_refused() -> None:
    document = HERE.to_document()
    del document["soc"]
    for wrong in (document, [], None, "host"):
        with pytest.raises(InvalidInput, match="not the conditions"):
            Conditions.from_document(wrong)  # type: ignore[arg-type]
