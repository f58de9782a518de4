"""Training: the loop, the step, the optimiser with its rules, device and precision, signals, and
what is watched on the way: finite numbers, the contracts of components, the online probe.

Not here: what a step computes (a method, in `builtin` or a plugin), construction (`experiment`),
checkpoint files (`runs`), and evaluation (`evaluation`)."""
