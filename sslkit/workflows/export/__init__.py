"""The encoder of a run for other programs: written, loaded back, compared, and only then kept.

Not here: `encoder.safetensors` of a run folder (`runs`)."""
