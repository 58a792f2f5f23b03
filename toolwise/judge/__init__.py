"""A model that judges: its endpoint, and what may be spent on it."""
