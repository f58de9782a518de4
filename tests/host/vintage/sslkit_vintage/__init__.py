"""A package that a stranger wrote for interface 1, `sslkit.interfaces` of the first release: a
component of every kind as the how-to pages of that time had them, and what these allowed beside."""

from sslkit import hookimpl


@hookimpl
def register_augmentations():
    return {
        "v_crop": "sslkit_vintage.augmentation:CropGamma",
    }


@hookimpl
def register_backbones():
    return {
        "v_conv": "sslkit_vintage.backbone:TinyConv",
    }


@hookimpl
def register_heads():
    return {
        "v_bottle": "sslkit_vintage.head:Bottle",
    }


@hookimpl
def register_losses():
    return {
        "v_align": "sslkit_vintage.loss:AlignUniform",
    }


@hookimpl
def register_methods():
    return {
        "v_plain": "sslkit_vintage.method:Plain",
        "v_args": "sslkit_vintage.method_args:Plain",
        "v_temp": "sslkit_vintage.method_temperature:Plain",
        "v_momentum": "sslkit_vintage.method_momentum:Plain",
    }


@hookimpl
def register_datasets():
    return {
        "v_data": "sslkit_vintage.data:Plain",
        "v_pixels": "sslkit_vintage.data:Pixels",
        "v_masks": "sslkit_vintage.data:Masks",
        "v_boxes": "sslkit_vintage.data:Boxed",
        "v_encoded": "sslkit_vintage.data:Encoded",
    }


@hookimpl
def register_evaluators():
    return {
        "v_centroid": "sslkit_vintage.evaluators:Centroid",
        "v_named": "sslkit_vintage.evaluators:Named",
        "v_pairs": "sslkit_vintage.evaluators:Pairs",
        "v_embeddings": "sslkit_vintage.evaluators:Embeddings",
        "v_projected": "sslkit_vintage.evaluators:Projected",
        "v_allbaselines": "sslkit_vintage.evaluators:AllBaselines",
        "v_nobaselines": "sslkit_vintage.evaluators:NoBaselines",
        "v_unlabelled": "sslkit_vintage.refused:Unlabelled",
        "v_encoder": "sslkit_vintage.refused:Encoder",
        "v_imagesclass": "sslkit_vintage.refused:ImagesClass",
        "v_imagesinit": "sslkit_vintage.refused:ImagesInit",
        "v_pixelsinit": "sslkit_vintage.refused:PixelsInit",
        "v_pixelsclass": "sslkit_vintage.refused:PixelsClass",
        "v_owndata": "sslkit_vintage.refused:OwnData",
        "v_testonly": "sslkit_vintage.refused:TestOnly",
    }


@hookimpl
def register_optimizers():
    return {
        "v_sgd": "sslkit_vintage.optimisers:PlainSgd",
        "v_decay": "sslkit_vintage.optimisers:DecaySgd",
        "v_rule": "sslkit_vintage.optimisers:RuleSgd",
        "v_own": "sslkit_vintage.optimisers:OwnGroups",
    }


@hookimpl
def register_schedules():
    return {
        "v_halves": "sslkit_vintage.schedule:Halves",
    }


@hookimpl
def register_callbacks():
    return {
        "v_norm": "sslkit_vintage.callback:WeightNorm",
    }


@hookimpl
def register_trackers():
    return {
        "v_csv": "sslkit_vintage.tracker:CsvTracker",
    }
