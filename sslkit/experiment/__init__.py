"""From a recipe to something that can take its first step."""
