from sslkit.interfaces import (
    ComponentConfig,
    Facts,
    Head,
    Loss,
    LossInput,
    Method,
    ParamGroup,
    Slot,
    StepOutput,
    slot,
)


class Plain(Method):
    class Config(ComponentConfig):
        head: Slot[Head] = slot("mlp", hidden_dim=8, out_dim=8)
        loss: Slot[Loss] = slot("nt_xent")

    @classmethod
    def problems(cls, config, facts: Facts):
        if len(facts.views) != 2:
            yield "", "needs two views"

    def __init__(self, config, backbone, facts):
        super().__init__(config, backbone, facts)
        self.head = config.head.build(in_dim=backbone.num_features)
        self.loss = config.loss.build()

    @property
    def projection_layers(self):
        return self.head.as_layers()

    def embed(self, batch):
        features = [self.backbone(view) for view in batch.views]
        import torch

        return {
            "features": torch.stack(features, 1),
            "a": self.head(features[0]),
            "b": self.head(features[1]),
        }

    def objective(self, embeddings, batch):
        inputs = LossInput((embeddings["a"], embeddings["b"]), batch.labels)
        return StepOutput(self.loss(inputs), self.loss.metrics(inputs))

    def param_groups(self):
        return [ParamGroup([(n, p) for n, p in self.named_parameters()], lr_scale=0.5)]
