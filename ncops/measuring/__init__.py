"""Measurements: from tensors and arrays, from files of features, and from statistics that jobs have saved."""
