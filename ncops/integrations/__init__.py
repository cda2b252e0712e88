"""ncops inside other libraries: ``torchmetrics``, ``lightning`` and ``transformers``, one module each.

Each module needs the library that it is named after, and is imported by its own name only: ``import ncops`` needs none
of them.
"""
