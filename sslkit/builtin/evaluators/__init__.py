"""The built-in evaluators, from kNN to detection.

Not here: when they run and on what (`evaluation`), and solvers that know no recipe (`nn`)."""
