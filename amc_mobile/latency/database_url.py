"""The URL of a database and its password, which this process keeps in memory and nothing saves or shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qsl, unquote, urlencode

from amc_mobile.errors import InvalidConfig

URL_FORM = "use a path, or postgresql+psycopg://USER@HOST/DATABASE"
WAYS = (
    "set PGPASSWORD, or add a line to PostgreSQL's password file (~/.pgpass, or PGPASSFILE), "
    "or pass --table with the password in the URL to this command"
)
_URL = re.compile(r"(?P<scheme>[^:/@]*://)(?:(?P<user>[^:/@]*)(?::(?P<password>[^@]*))?@)?(?P<rest>[^@]*)", re.DOTALL)
_passwords: dict[str, str] = {}
_ask: Callable[[str], str] | None = None


def take_password(location: str) -> str:
    """The URL without its password, which `password_of` then knows for as long as this process lives.

    Paths come back as they are. Raises InvalidConfig for URLs that hide where their password ends.
    """
    if "://" not in location:
        if re.match(r"postgres\w*(\+\w+)?:", location):
            raise InvalidConfig(f"--table {masked(location)} is no database URL", next_step=URL_FORM)
        return location
    match = _URL.fullmatch(location)
    if match is None:
        raise InvalidConfig(
            f"--table {masked(location)} is no database URL",
            next_step=f"{URL_FORM}; in a user name or password write %40 for @, %3A for : and %2F for /",
        )
    rest, question, query = match["rest"].partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    if any(key.lower() == "sslpassword" for key, _ in pairs):
        raise InvalidConfig("--table: sslpassword cannot be part of the URL", next_step="use a key without a password")
    if any(key.lower() == "password" for key, _ in pairs):
        kept = urlencode([(key, value) for key, value in pairs if key.lower() != "password"])
        question, query = ("?", kept) if kept else ("", "")
    at = "" if match["user"] is None else f"{match['user']}@"
    url = f"{match['scheme']}{at}{rest}{question}{query}"
    in_query = next((value for key, value in pairs if key.lower() == "password"), "")
    if password := unquote(match["password"] or "") or in_query:
        _passwords[url] = password
    return url


def password_of(url: str) -> str | None:
    """What the URL held when `take_password` saw it, or what the user typed; None: PostgreSQL looks for it itself."""
    return _passwords.get(url)


def asked_password(url: str) -> str | None:
    """Asks the user, where somebody can answer. None where not."""
    password = _ask(url) if _ask else ""
    if password:
        _passwords[url] = password
    return password or None


def ask_with(ask: Callable[[str], str] | None) -> None:
    """Who asks the user for the password of a URL; "" where nobody answers."""
    global _ask
    _ask = ask


def masked(text: str) -> str:
    """Text that is no proper URL, without all that may be a part of a password."""
    before, at, after = text.rpartition("@")
    return f"***@{after}" if at else before + after
