"""The feed from the run folder to a tracker: a background thread that sends what is new and goes on
where it stopped, and the metrics of the machine.

Not here: the trackers themselves (components, in `builtin`), and `metrics.jsonl`, the truth that is
sent (`runs`)."""
