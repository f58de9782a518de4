"""What results look like: tables, figures, pages and lists, for the terminal, Markdown and HTML.

Not here: measuring or statistics (`evaluation`, `workflows/compare`), and what goes to a tracker
(`tracking`)."""
