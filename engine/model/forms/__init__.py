"""The forms of linear layers whose weights are packed: one file for each packed layout."""
