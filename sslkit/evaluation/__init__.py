"""How an encoder is measured: its features, which evaluators are due, baselines measured alike,
isolation of the weights, results, and statistics of them.

Not here: the evaluators (components, in `builtin/evaluators`), what they implement
(`api/evaluation.py`), and the numerics that they share (`nn`)."""
