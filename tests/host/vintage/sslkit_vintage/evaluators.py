import torch

from sslkit.interfaces import Evaluation, Evaluator, EvaluatorConfig, Subject
from sslkit.nn.functional import normalize


class Centroid(Evaluator):
    """Accuracy of the nearest class mean in cosine similarity."""

    def evaluate(self, subject: Subject) -> Evaluation:
        bank = subject.bank
        labels, test_labels = bank.train_labels, bank.test_labels
        assert labels is not None
        assert test_labels is not None
        train, test = normalize(bank.train), normalize(bank.test)
        means = torch.stack([train[labels == c].mean(dim=0) for c in range(bank.num_classes)])
        predictions = (test @ normalize(means).T).argmax(dim=1)
        return Evaluation(metrics={"top1": (predictions == test_labels).float().mean().item()})


class Named(Evaluator):
    """The name of the subject."""

    def evaluate(self, subject):
        return Evaluation(metrics={"is_trained": float(subject.name == "trained")})


class Pairs(Evaluator):
    requires_labels = False

    def evaluate(self, subject):
        if subject.positive_pairs is None:
            return Evaluation(skipped="no images")
        a, b = subject.positive_pairs(16)
        return Evaluation(metrics={"alignment": (a - b).norm(dim=1).mean().item()})


class Embeddings(Evaluator):
    requires_labels = False
    baselines = False

    def evaluate(self, subject):
        if subject.embeddings is None:
            return Evaluation(skipped="outside a run")
        now, before = subject.embeddings(), subject.untrained_embeddings()
        return Evaluation(metrics={"moved": (now["z"] - before["z"]).norm().item()})


class Projected(Evaluator):
    class Config(EvaluatorConfig):
        layer: int = 1

    def __init__(self, config):
        super().__init__(config)
        self.projection_layer = config.layer

    def evaluate(self, subject):
        layer = self.config.layer if subject.projection_layers else 0
        return Evaluation(metrics={"width": float(subject.projected(layer).bank.train.shape[1])})


class AllBaselines(Evaluator):
    baselines = True

    def evaluate(self, subject):
        return Evaluation(metrics={"n": float(len(subject.bank.test))})


class NoBaselines(Evaluator):
    baselines = False

    def evaluate(self, subject):
        return Evaluation(metrics={"n": float(len(subject.bank.test))})
