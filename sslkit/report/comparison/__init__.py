"""What a comparison looks like: tables, figures, the gallery, the page.

Not here: running its arms, and what is read of finished runs to compare them
(`workflows/compare`)."""
