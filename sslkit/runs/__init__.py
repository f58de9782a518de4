"""The run folder: each of its files with one reader and one writer, the checkpoint, the encoder
file, the environment, and writing so that a kill leaves a whole file. Nobody else knows a file's
name.

Not here: when something is written (`engine`, `workflows`), and what is sent on (`tracking`)."""
