"""Parts for authors of components: losses, layers, teachers, queues, optimisers, operations on
images, and the numerics of evaluators, as pure functions and small modules.

Not here: components, which have a `Config` and a name (`builtin`), and anything that knows of
recipes, runs or files of a run."""
