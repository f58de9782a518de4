from sslkit_vintage.method import Plain as _Plain


class Plain(_Plain):
    def __init__(self, config, backbone, facts):
        super().__init__(config, backbone, facts)
        self.tau = 2.0 * config.loss.config.temperature

    def objective(self, embeddings, batch, progress):
        return super().objective(embeddings, batch)
