"""Streaming statistics of classes and decisions: one pass, mergeable, exact near collapse."""
