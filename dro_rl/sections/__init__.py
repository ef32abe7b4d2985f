"""The sections of a recipe (see `dro_rl.recipe`), one file each."""
