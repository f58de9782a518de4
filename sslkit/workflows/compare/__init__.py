"""`sslkit compare`: the runs that it makes, what it reads of them, and the statistics over seeds.
How that looks is `sslkit.report.comparison`."""
