from sslkit.nn.ema import cosine_momentum
from sslkit_vintage.method import Plain as _Plain


class Plain(_Plain):
    def after_step(self, progress, carry):
        self.momentum = cosine_momentum(progress.fraction, 0.996)
