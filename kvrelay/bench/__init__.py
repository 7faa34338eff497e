"""`kvrelay bench serve`: puts a load on a server over HTTP and tells how it was served."""
