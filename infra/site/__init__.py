"""Makes the pages of the documentation site that are generated."""
