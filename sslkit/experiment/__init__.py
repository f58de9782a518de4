"""From a recipe to something that can take its first step: `resolve` writes out what depends on
the machine, `check` opens the data and asks every component what cannot work, `build` constructs.

Not here: the steps themselves (`engine`), the text of recipes (`recipe`), and what is done with an
experiment once it is built (`workflows`)."""
