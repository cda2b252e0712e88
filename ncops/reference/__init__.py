"""The ops in plain PyTorch: what they mean, and what runs where no kernel does.

``allow_tf32`` is torch's own setting here: its matrix product obeys it without being told.
"""
