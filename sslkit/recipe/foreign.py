"""What other frameworks call the fields of a recipe: Lightning, solo-learn, lightly, timm and the
official code of papers; and sslkit before a field was replaced. Only messages use it: a recipe has
one name for each thing."""

from __future__ import annotations

_RENAMED = {
    "seed": "seed_everything random_seed manual_seed rng_seed",
    "runs_dir": "default_root_dir output_dir log_dir save_dir checkpoint_dir work_dir exp_dir",
    "tracking": "logger loggers wandb tensorboard log_with",
    "data.train": "train_path train_data_path train_dir train_data data_path data_dir input_dir "
    "root train_split",
    "data.test": "val val_path val_data_path val_dir valid validation test_path test_dir "
    "val_data val_split",
    "augmentation.size": "img_size image_size input_size crop_size resolution global_crop_size "
    "input_height",
    "augmentation.num_views": "num_crops num_large_crops n_views nviews num_augmentations",
    "augmentation.views": "multicrop multi_crop num_small_crops local_crops_number",
    "augmentation.crop_scale": "min_scale crop_min_scale rrc_scale area_range global_crops_scale",
    "augmentation.jitter_strength": "cj_strength color_jitter_strength color_jitter",
    "backbone.model": "arch architecture model_name backbone_name encoder network net",
    "backbone.weights": "pretrained_path pretrained_weights weights_path init_checkpoint "
    "pretrained_feature_extractor",
    "backbone.drop_path_rate": "drop_path stochastic_depth",
    "backbone.model_args": "model_kwargs backbone_kwargs kwargs",
    "method.out_dim": "proj_output_dim projection_dim proj_dim output_dim embedding_dim "
    "embed_dim feature_dim",
    "method.hidden_dim": "proj_hidden_dim pred_hidden_dim projection_hidden_dim mlp_hidden_dim",
    "method.temperature": "tau temp moco_t softmax_temperature",
    "method.teacher_momentum": "momentum ema ema_decay moco_m base_tau base_tau_momentum "
    "momentum_teacher",
    "method.queue_size": "moco_k memory_bank_size queue_length bank_size",
    "optimizer.lr": "learning_rate base_lr init_lr blr max_lr peak_lr",
    "optimizer.weight_decay": "wd",
    "optimizer.no_weight_decay": "skip_list no_weight_decay_list no_decay",
    "optimizer.exclude_bias_and_norm": "exclude_bias_n_norm exclude_bias_n_norm_wd no_decay_norm",
    "schedule.warmup_epochs": "num_warmup_epochs warmup warm_up",
    "train.epochs": "max_epochs num_epochs n_epochs total_epochs num_train_epochs",
    "train.max_steps": "max_iter max_iters max_iterations iterations num_iterations num_steps "
    "total_steps steps",
    "train.batch_size": "bs global_batch_size total_batch_size train_batch_size "
    "per_device_train_batch_size batch_size_per_device",
    "train.precision": "amp use_amp mixed_precision autocast fp16 use_fp16 bf16 dtype",
    "train.parallel": "strategy distributed distributed_strategy ddp fsdp",
    "train.device": "accelerator cuda use_cuda",
    "train.loader_threads": "num_workers workers n_workers num_threads dataloader_num_workers "
    "dataloader_workers",
    "train.max_grad_norm": "gradient_clip_val clip_grad clip_grad_norm grad_clip gradient_clip "
    "clip_gradients max_norm",
    "train.compile": "torch_compile use_compile compile_model",
    "train.deterministic": "cudnn_deterministic use_deterministic_algorithms",
    "train.log_every_steps": "log_every_n_steps log_freq log_interval print_freq logging_steps",
    "train.checkpoint_every_epochs": "save_freq save_every save_every_n_epochs saveckp_freq "
    "checkpoint_freq checkpoint_frequency",
    "train.checkpoint_every_steps": "every_n_train_steps save_steps",
    "train.keep_checkpoints": "save_top_k save_total_limit keep_last",
    "evaluate.every_epochs": "check_val_every_n_epoch eval_freq eval_every eval_interval "
    "val_interval",
}  # fmt: skip
"""`field`, or `block.field` for a field anywhere in that block of a recipe -> its other names."""

RENAMED = {name: field for field, names in _RENAMED.items() for name in names.split()}
"""Other name -> field, as above."""

_ABSENT = {
    "accumulate accumulate_grad_batches accumulation_steps accum_iter grad_accum_steps "
    "gradient_accumulation_steps grad_accum update_interval": (
        "sslkit does not add up the gradients of small batches, because a loss between images "
        "would see fewer of them; set train.batch_size to the whole batch and "
        "train.micro_batch_size to what fits into memory: the loss is then that of the whole batch"
    ),
    "devices gpus num_gpus n_gpus gpu gpu_id gpu_ids num_devices num_nodes world_size "
    "nproc_per_node": (
        "a recipe says nothing of processes: sslkit run RECIPE --nproc N trains on N devices of "
        "this machine, torchrun or srun on several machines; CUDA_VISIBLE_DEVICES says which GPUs"
    ),
    "sync_batchnorm sync_bn": (
        "there is no such setting: BatchNorm is over the images of all processes, as in one"
    ),
    "shuffle drop_last pin_memory persistent_workers prefetch_factor non_blocking": (
        "there is no such setting: every epoch has an order of its own that follows from the seed, "
        "images that fill no batch are left out of it, and train.loader_threads decode ahead"
    ),
    "num_classes n_classes nb_classes": (
        "there is no such setting: the number of classes follows from the labels"
    ),
    "in_channels in_chans num_channels": (
        "there is no such setting: the number of channels follows from the data"
    ),
    "final_momentum final_tau final_tau_momentum": (
        "one block gives both ends: method.teacher_momentum: {name: cosine, start: 0.996, end: 1.0}"
    ),
    "min_lr eta_min final_lr lr_min": (
        "the cosine schedule has schedule.final_factor, the last learning rate as a part of the "
        "peak"
    ),
    "resume resume_from resume_from_checkpoint ckpt_path checkpoint_path auto_resume": (
        "is no field: sslkit run --resume RUN goes on with a run, --fork RUN starts another from "
        "its state, and backbone.weights starts from its weights"
    ),
    "fast_dev_run dry_run": "is no field: sslkit run RECIPE --dry-run takes one step",
    "selection_fraction": (
        "settings are cross-validated now: selection_folds, the number of parts that are held out "
        "in turn, took its place, and recipes and run folders from before can leave it out"
    ),
    "scale_lr auto_lr_scale lr_scale": (
        "the learning rate is scaled by the batch size where optimizer.lr_reference_batch is set"
    ),
}  # fmt: skip

ABSENT = {name: text for names, text in _ABSENT.items() for name in names.split()}
"""Name of a setting that no field stands for -> what to do instead."""

VALUES = {
    **dict.fromkeys(("16", "16-mixed", "16-true", "float16", "half", "amp"), "fp16"),
    **dict.fromkeys(("bf16-mixed", "bf16-true", "bfloat16"), "bf16"),
    **dict.fromkeys(("32", "32-true", "float32", "full", "no"), "fp32"),
    "gpu": "cuda",
}
"""What other frameworks write for a choice -> the choice."""
