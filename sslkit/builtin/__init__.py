"""The components that come with sslkit, through the hooks that every other plugin uses and by the
same imports: `sslkit.api`, `.nn`, `.parallel`, `.errors`, `.randomness`.

Not here: anything that another room imports; nobody imports this one."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {"simclr": "sslkit.builtin.simclr:SimCLR"}


@hookimpl
def register_backbones() -> Mapping[str, str]:
    return {"timm": "sslkit.builtin.timm_backbone:TimmBackbone"}


@hookimpl
def register_heads() -> Mapping[str, str]:
    return {"mlp": "sslkit.builtin.mlp_head:MLPHead"}


@hookimpl
def register_losses() -> Mapping[str, str]:
    return {
        "nt_xent": "sslkit.builtin.losses:NTXent",
        "info_nce": "sslkit.builtin.losses:InfoNCE",
    }


@hookimpl
def register_augmentations() -> Mapping[str, str]:
    return {
        "simclr": "sslkit.builtin.augmentations:SimCLRAugmentation",
        "crop_flip": "sslkit.builtin.crop_flip:CropFlip",
    }


@hookimpl
def register_datasets() -> Mapping[str, str]:
    return {
        "coco": "sslkit.builtin.sources.coco:COCO",
        "digits": "sslkit.builtin.sources.digits:Digits",
        "image_folder": "sslkit.builtin.sources.image_folder:ImageFolder",
        "pack": "sslkit.data.pack:Pack",
        "parquet": "sslkit.builtin.sources.parquet:Parquet",
        "scenes": "sslkit.builtin.sources.scenes:Scenes",
        "synthetic": "sslkit.builtin.sources.synthetic:Synthetic",
        "torchvision": "sslkit.builtin.sources.torchvision:Torchvision",
        "voc": "sslkit.builtin.sources.voc:VOC",
    }


@hookimpl
def register_evaluators() -> Mapping[str, str]:
    return {
        "knn": "sslkit.builtin.evaluators.knn:KNN",
        "linear": "sslkit.builtin.evaluators.linear:Linear",
        "few_label": "sslkit.builtin.evaluators.few_label:FewLabel",
        "semi_supervised": "sslkit.builtin.evaluators.semi_supervised:SemiSupervised",
        "finetune": "sslkit.builtin.evaluators.finetune:Finetune",
        "clustering": "sslkit.builtin.evaluators.clustering:Clustering",
        "retrieval": "sslkit.builtin.evaluators.retrieval:Retrieval",
        "collapse": "sslkit.builtin.evaluators.collapse:Collapse",
        "segmentation": "sslkit.builtin.evaluators.segmentation:Segmentation",
        "last_blocks": "sslkit.builtin.evaluators.last_blocks:LastBlocks",
        "stages": "sslkit.builtin.evaluators.stages:Stages",
        "detection": "sslkit.builtin.evaluators.detection:Detection",
    }


@hookimpl
def register_optimizers() -> Mapping[str, str]:
    return {
        "sgd": "sslkit.builtin.optimizers:SGD",
        "adam": "sslkit.builtin.optimizers:Adam",
        "adamw": "sslkit.builtin.optimizers:AdamW",
        "lars": "sslkit.builtin.optimizers:LARS",
    }


@hookimpl
def register_schedules() -> Mapping[str, str]:
    return {
        "constant": "sslkit.builtin.schedules:Constant",
        "cosine": "sslkit.builtin.schedules:Cosine",
        "linear": "sslkit.builtin.schedules:Linear",
        "multistep": "sslkit.builtin.schedules:MultiStep",
    }


@hookimpl
def register_trackers() -> Mapping[str, str]:
    return {
        "mlflow": "sslkit.builtin.mlflow_tracker:MLflowTracker",
        "none": "sslkit.builtin.no_tracker:NoTracker",
    }


@hookimpl
def register_callbacks() -> Mapping[str, str]:
    return {
        "attention_maps": "sslkit.builtin.attention_maps:AttentionMaps",
        "augmented_views": "sslkit.builtin.augmented_views:AugmentedViews",
    }
