"""Displays for tests."""

from __future__ import annotations

from sslkit.engine.display import Silent


class Heard(Silent):
    """Keeps the messages, and shows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)
