from sslkit.interfaces import ComponentConfig, Progress, Schedule


class Halves(Schedule):
    class Config(ComponentConfig):
        every: int = 2

    def factor(self, progress: Progress):
        return 0.5 ** (progress.step // self.config.every)
