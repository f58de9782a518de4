"""Where the files of a run lie that its trackers and callbacks may read: a contract, which
`sslkit.api` hands out. It stands below it, so that what only looks at runs imports no torch."""

from __future__ import annotations

from pathlib import Path

ENCODER_FILE = "encoder.safetensors"


class RunFiles:
    """The paths of the files in a run folder. Those that are not written yet do not exist; the
    format of each is on the page "Run folder" of the reference. Only the run itself writes them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def recipe(self) -> Path:
        """The resolved recipe, written as the run starts."""
        return self.path / "recipe.resolved.yaml"

    @property
    def environment(self) -> Path:
        """Versions, hardware and the fingerprints of the data."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """Every logged value."""
        return self.path / "metrics.jsonl"

    @property
    def encoder(self) -> Path:
        """The trained encoder, written at the end."""
        return self.path / ENCODER_FILE

    @property
    def report(self) -> Path:
        """The report for people, written at the end."""
        return self.path / "report.md"

    @property
    def figures(self) -> Path:
        """The folder of the report's figures."""
        return self.path / "figures"
