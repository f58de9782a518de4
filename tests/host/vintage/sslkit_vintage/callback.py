import torch

from sslkit.interfaces import Callback


class WeightNorm(Callback):
    def on_start(self, run, method):
        self._encoder = method.encoder

    def on_batch(self, run, batch, progress):
        self.last = len(batch)

    def on_step(self, run, metrics, progress):
        with torch.no_grad():
            norm = torch.stack([p.norm() for p in self._encoder.parameters()]).norm().item()
        with (run.run_dir / "weight_norm.csv").open("a") as file:
            file.write(f"{progress.step},{norm:.6g}\n")

    def on_evaluation(self, run, metrics, progress):
        (run.run_dir / "seen.txt").write_text(",".join(sorted(metrics)))
