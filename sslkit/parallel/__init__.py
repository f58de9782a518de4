"""What several processes do together.

Not here: how batches are divided (`data`), and how a step is made of parts (`engine`)."""
