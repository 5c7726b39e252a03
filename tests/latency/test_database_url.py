"""The password in a database's URL: taken out before anything saves or shows the URL."""

from __future__ import annotations

import pytest

from amc_mobile.errors import InvalidConfig
from amc_mobile.latency import database_url
from amc_mobile.latency.database_url import password_of, take_password


@pytest.fixture(autouse=True)
def _no_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_url, "_passwords", {})


@pytest.mark.parametrize(
    ("given", "url", "password"),
    [
        ("postgresql://amc:s3cret@h:1/d", "postgresql://amc@h:1/d", "s3cret"),
        ("postgresql+psycopg://amc:s3%40cret@h/d?x=1", "postgresql+psycopg://amc@h/d?x=1", "s3@cret"),
        ("postgresql://amc:s3/c?ret@h/d", "postgresql://amc@h/d", "s3/c?ret"),
        ("postgresql://amc@h/d?password=s3cret&x=1", "postgresql://amc@h/d?x=1", "s3cret"),
        ("postgresql://amc@h/d?password=s3cret", "postgresql://amc@h/d", "s3cret"),
        ("postgresql://:s3cret@h/d", "postgresql://@h/d", "s3cret"),
        ("mysql://amc:s3cret@h/d", "mysql://amc@h/d", "s3cret"),
        ("postgresql://amc@h/d", "postgresql://amc@h/d", None),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=/run/postgresql", None),
        ("folder/table.sqlite", "folder/table.sqlite", None),
        ("", "", None),
    ],
)
def test_the_password_is_taken_out_and_known_to_this_process(given: str, url: str, password: str | None) -> None:
    assert take_password(given) == url
    assert password_of(url) == password
    assert take_password(url) == url


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://amc:s3@cret@h/d",
        "postgresql://amc:s@3/c@ret@h/d",
        "postgresql://a/mc:s3cret@h/d",
        "postgresql:/amc:s3cret@h/d",
        "postgresql+psycopg:amc:s3cret@h/d",
        "postgresql://amc@h/d?sslpassword=s3cret",
    ],
)
def test_a_url_whose_password_has_no_clear_end_is_refused_without_it(given: str) -> None:
    with pytest.raises(InvalidConfig, match="--table") as caught:
        take_password(given)
    for part in ("s3", "cret", "s@3"):
        assert part not in caught.value.message + caught.value.next_step
