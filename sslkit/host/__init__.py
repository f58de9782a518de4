"""The plugin host: hooks, discovery of plugins, and the registry of what they offer."""
