"""From a data source to batches: splits, images in memory or decoded by threads, the order of an
epoch, views, transfer to the device, packs, and the images that evaluators see.

Not here: sources, readers and augmentations (components, in `builtin`), what they implement
(`api/data.py`, `api/views.py`), and operations on images (`nn`)."""
