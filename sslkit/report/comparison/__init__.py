"""How a comparison looks: tables, figures, pictures and the page. It renders what
`sslkit.workflows.compare` read and computed, and does neither itself."""
