import csv
import shutil
from pathlib import Path

from sslkit.interfaces import ComponentConfig, Tracker


class CsvTracker(Tracker):
    class Config(ComponentConfig):
        folder: Path = Path("csv")

    def start(self, run, run_id):
        self._folder = self.config.folder / (run_id or run.run_dir.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder.name

    def log_metrics(self, points):
        with (self._folder / "metrics.csv").open("a", newline="") as file:
            csv.writer(file).writerows((p.step, p.key, p.value, p.time_ms) for p in points)

    def log_artifact(self, path, folder):
        target = self._folder / folder
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)

    def finish(self, status):
        (self._folder / "status").write_text(status)
