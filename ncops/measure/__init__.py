"""Measurements from files: stored features, and statistics that jobs have saved."""
