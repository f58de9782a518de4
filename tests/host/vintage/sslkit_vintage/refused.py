from sslkit.interfaces import Evaluation, Evaluator


class Unlabelled(Evaluator):
    """Labels used where there are any, as FeatureBank said: None without labels."""

    requires_labels = False

    def evaluate(self, subject):
        bank = subject.bank
        if bank.train_labels is None:
            return Evaluation(metrics={"spread": bank.train.std().item()})
        return Evaluation(
            metrics={
                "spread": bank.train.std().item(),
                "classes": float(len(bank.train_labels.unique())),
            }
        )


class Encoder(Evaluator):
    def evaluate(self, subject):
        if subject.encoder is None:
            return Evaluation(skipped="pixels")
        return Evaluation(
            metrics={"weights": float(sum(p.numel() for p in subject.encoder.parameters()))}
        )


class ImagesClass(Evaluator):
    uses_features = False

    def evaluate(self, subject):
        return Evaluation(metrics={"n": float(len(subject.images.labels("train")))})


class ImagesInit(Evaluator):
    """As `uses_features` said: it may follow from the configuration, set it in __init__."""

    def __init__(self, config):
        super().__init__(config)
        self.uses_features = False

    def evaluate(self, subject):
        return Evaluation(metrics={"n": float(len(subject.images.labels("train")))})


class PixelsInit(Evaluator):
    def __init__(self, config):
        super().__init__(config)
        self.pixel_baseline = False

    def evaluate(self, subject):
        return Evaluation(metrics={"n": float(len(subject.bank.train))})


class PixelsClass(Evaluator):
    pixel_baseline = False

    def evaluate(self, subject):
        return Evaluation(metrics={"n": float(len(subject.bank.train))})


class OwnData(Evaluator):
    own_data = True
    uses_features = False

    def evaluate(self, subject):
        return Evaluation(metrics={"n": 1.0})


class TestOnly(Evaluator):
    uses_train = False

    def evaluate(self, subject):
        return Evaluation(metrics={"n": float(len(subject.bank.test))})
