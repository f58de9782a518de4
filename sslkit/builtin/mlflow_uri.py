"""The address of an MLflow store: which are valid, and that none of them carries a login.

A recipe is written into the run folder, logged as params and shown, so a URI in it may hold no
login. `MLFLOW_TRACKING_URI` may: for a server the login is taken out and given to MLflow's client
by `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`; that of a database stays in the URI,
which then goes to SQLAlchemy alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes, urlsplit

from sslkit.environment_variables import MLFLOW_TRACKING_URI
from sslkit.errors import hide_logins

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks")
_USERNAME, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_WEB_SERVER = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?(/[\w.~/-]*)?", re.I)
_DATABRICKS = re.compile(r"databricks(://[\w.:-]+)?", re.I)
_HARMLESS = frozenset({
    "application_name", "charset", "collation", "connect_timeout", "driver", "encrypt", "ssl_ca",
    "sslmode", "sslrootcert", "timeout", "trustservercertificate",
})  # fmt: skip
"""Fields of a database's URI that cannot hold a login."""


def resolve_uri(tracking_uri: str | None) -> str:
    """The store: the given one, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the working
    directory. Paths of SQLite files come out absolute: MLflow would take them from wherever the
    process happens to be. A server's comes out without its login."""
    uri = tracking_uri or MLFLOW_TRACKING_URI.text()
    if not uri:
        return sqlite_uri(Path("mlflow.db").absolute())
    path = sqlite_path(uri)
    if path is not None:
        return sqlite_uri(path)
    return _without_userinfo(uri) if _scheme(uri) in ("http", "https") else uri.rstrip("/")


def login_of_environment() -> dict[str, str]:
    """Variables of MLflow's client for the login in `MLFLOW_TRACKING_URI`; none where it names no
    server or has no login."""
    uri = MLFLOW_TRACKING_URI.text() or ""
    if _scheme(uri) not in ("http", "https"):
        return {}
    user, _, password = _userinfo(uri).partition(":")
    return {_USERNAME: unquote(user), _PASSWORD: unquote(password)} if password else {}


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of the database file, None where the URI names no SQLite file."""
    head, separator, path = uri.partition(":///")
    if not separator or head.split("+")[0].lower() != "sqlite" or not path or "?" in path:
        return None
    return Path(os.fsdecode(unquote_to_bytes(path))).expanduser().absolute()


def sqlite_uri(path: Path) -> str:
    """The URI of a database file. SQLAlchemy takes `%` and `?` as signs of a URI; MLflow makes the
    folder that the URI seems to name, so that its slashes are quoted too where anything is."""
    text = path.as_posix()
    return f"sqlite:///{text if _is_plain(text) else quote(os.fsencode(text), safe='')}"


def _is_plain(path: str) -> bool:
    return path.isprintable() and not {"%", "?"} & set(path)


def uri_problem(uri: str, *, of_environment: bool = False) -> str | None:
    """Why no run can be tracked at this URI, None where it looks right. No login is shown."""
    scheme = _scheme(uri)
    if scheme == "sqlite":
        return _sqlite_problem(uri)
    if scheme not in (*DATABASES, *SERVERS):
        others = ", ".join((*DATABASES[1:], *SERVERS[1:]))
        return (
            f"'{_shown(uri)}' is no MLflow store; valid are sqlite:///path/to/mlflow.db, "
            f"http://host:port and other URIs that start with {others}"
        )
    if scheme in DATABASES:
        return None if of_environment or not _may_hold_login(uri) else (
            f"'{_shown(uri)}' may hold a login, which the run folder and the tracker would show; "
            f"leave tracking_uri out and set the variable {MLFLOW_TRACKING_URI.name} to the "
            "whole URI"
        )  # fmt: skip
    pattern = _DATABRICKS if scheme == "databricks" else _WEB_SERVER
    user, _, password = _userinfo(uri).partition(":")
    if pattern.fullmatch(uri):
        return None
    if of_environment and user and password and pattern.fullmatch(_without_userinfo(uri)):
        return None
    return (
        f"'{_shown(uri)}' holds more than an address; write http://host:port, and give a login by "
        f"the variables {_USERNAME} and {_PASSWORD}"
    )


def _sqlite_problem(uri: str) -> str | None:
    path = sqlite_path(uri)
    if path is None and "?" in uri:
        return f"'{_shown(uri)}' has a '?'; write %3F where it is a part of the path"
    if path is None:
        return f"'{_shown(uri)}' names no file; write sqlite:///path/to/mlflow.db"
    if not _is_plain(path.as_posix()) and not _is_reached(path):
        return (
            f"{str(path)!r} cannot be written as a URI for the installed SQLAlchemy; choose a "
            "folder whose name has no '%', no '?' and only characters of UTF-8"
        )
    return None


def _is_reached(path: Path) -> bool:
    """Whether SQLAlchemy opens this very file; before 2.1 it does not unquote paths."""
    from sqlalchemy.engine import make_url

    return make_url(sqlite_uri(path)).database == path.as_posix()


def _may_hold_login(uri: str) -> bool:
    fields = parse_qsl(urlsplit(uri).query, keep_blank_values=True, separator="&")
    return "@" in unquote(uri) or any(name.lower() not in _HARMLESS for name, _ in fields)


def _scheme(uri: str) -> str:
    return uri.strip().partition(":")[0].split("+")[0].lower()


def _userinfo(uri: str) -> str:
    authority = uri.partition("://")[2]
    return authority.rpartition("@")[0]


def _without_userinfo(uri: str) -> str:
    scheme, separator, authority = uri.partition("://")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}".rstrip("/")


def _shown(uri: str) -> str:
    """The URI for a message: whatever may be a login is left out."""
    scheme, separator, rest = uri.partition(":")
    if "@" in unquote(rest):
        rest = f"//***@{unquote(rest).rpartition('@')[2]}"
    fields = re.sub(r"=[^&;]*", "=***", rest.partition("?")[2])
    rest = rest.partition("?")[0] + (f"?{fields}" if fields else "")
    return hide_logins(f"{scheme}{separator}{rest}")
