"""How a comparison looks: tables, figures, pictures and the page. It renders what
`workflows/compare` read and computed.

Not here: reading run folders, and statistics over seeds (`workflows/compare`)."""
