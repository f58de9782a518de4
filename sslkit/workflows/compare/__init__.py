"""`sslkit compare`: the runs that it makes, what it reads of them, and the statistics over seeds.

Not here: how that looks, and the values that it shows (`report/comparison`)."""
