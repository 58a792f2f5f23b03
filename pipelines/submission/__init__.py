"""From a compiled pipeline to a run that has ended: finding the server, signing in, following."""
