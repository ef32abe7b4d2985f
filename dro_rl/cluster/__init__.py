"""The processes of a run, on Ray or all in this one: placed, watched, and made again when lost."""
