"""The plugin host: hooks, discovery of plugins, the registry of what they offer, whether they fit
this interface, and the recipe files that packages bring. Importing it imports no torch.

Not here: what a component must implement (`api`), and the components that come with sslkit
(`builtin`)."""
