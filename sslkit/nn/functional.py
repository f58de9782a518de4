"""Contrastive losses and what to watch beside them, as pure functions; the metrics of
representations (`sslkit.nn.representation`) can be imported from here too.

The losses take unnormalised embeddings, leave autocast, and compute in float32 (float64 stays
float64). Shapes: B images, D embedding width, V views of each image, K further negatives, M = V B
anchors. Memory is linear in M: at most `chunk_elements` similarities are held at a time, which
moves speed and memory, and the result by rounding only. `group` names the ranks that share their
negatives; `sslkit.parallel.collectives` says how gradients are scaled then.
"""

from __future__ import annotations

from .contrastive import check_pair, info_nce, nt_xent, sup_con
from .contrastive_metrics import (
    ContrastiveMetrics,
    contrastive_accuracy_and_entropy,
    softmax_entropy,
    topk_accuracy,
)
from .log_partition import DEFAULT_CHUNK_ELEMENTS, self_log_partition
from .numerics import normalize
from .representation import alignment, feature_std, rankme, uniformity

__all__ = [
    "DEFAULT_CHUNK_ELEMENTS",
    "ContrastiveMetrics",
    "alignment",
    "check_pair",
    "contrastive_accuracy_and_entropy",
    "feature_std",
    "info_nce",
    "normalize",
    "nt_xent",
    "rankme",
    "self_log_partition",
    "softmax_entropy",
    "sup_con",
    "topk_accuracy",
    "uniformity",
]
