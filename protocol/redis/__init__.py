"""Redis as the record of who owns what: clients for every kind of URL, keys and scripts."""
