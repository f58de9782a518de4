"""`sslkit doctor`: this installation on one screen."""

from __future__ import annotations

from .options import AsJson
from .output import print_json


def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, plugins and the tracking store on one screen."""
    from sslkit.report.doctor import print_diagnosis
    from sslkit.workflows.doctor import diagnose

    found = diagnose().to_json()
    print_json(found) if as_json else print_diagnosis(found)
