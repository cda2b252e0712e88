"""Plots with matplotlib, which is imported when one is drawn. What draws takes the axes and never calls ``show``."""
