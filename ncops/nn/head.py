"""A linear classifier that takes the targets too, so that its weight is used where a wrapper has it whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..model import other_parameters, prove_product, qualified_name
from ..ops import LinearLoss, linear_loss
from ..ops.checks import is_dtensor


class LinearHead(nn.Linear):
    """An ``nn.Linear`` that turns features and targets into a loss without logits: :func:`ncops.linear_loss`.

    Built like ``nn.Linear``, with the same parameters and ``state_dict``; :meth:`from_linear` takes over a layer that
    exists. The loss is formed inside ``forward``: DDP sees its parameters used, ``fully_shard`` has the weight whole,
    and autocast makes products in its dtype.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> LinearHead:
        """A head with the very parameters of ``linear``, to be put in its place before DDP or FSDP wrap the model.

        Raises:
            TypeError: no ``nn.Linear``. ValueError: its weight is sharded already; or it is more than
                ``x @ weight.T + bias``: parameters beside these two (adapters, parametrizations), or another output on
                a few random rows (hooks; not looked at on the meta device).
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear: expected an nn.Linear, got {qualified_name(linear)}")
        others = other_parameters(linear)
        if others:
            raise ValueError(f"linear: expected no parameters but weight and bias, got {', '.join(others)}")
        weight, bias = linear.weight, linear.bias
        if is_dtensor(weight):
            raise ValueError("linear: expected a plain weight, got a DTensor: take the layer over before fully_shard")
        if not weight.is_meta:
            rows = torch.randn(8, weight.shape[1], generator=torch.Generator().manual_seed(0), device="cpu")
            prove_product(linear, rows.to(weight.device), "linear", "would be lost")
        head = cls(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        head.weight, head.bias = weight, bias
        return head.train(linear.training)

    def forward(self, x: Tensor, target: Tensor | None = None, **options: Any) -> Tensor | LinearLoss:  # type: ignore[override]
        """Logits, as ``nn.Linear`` gives them; with a target or any of the options of :func:`ncops.linear_loss`, that.

        Args:
            x: ``(..., D)`` features.
            target: ``(...)`` class of each row.
            options: ``z_loss``, ``label_smoothing``, ``softcap``, ``num_items`` and so on.
        """
        if target is None and not options:
            return super().forward(x)
        return linear_loss(x, self.weight, self.bias, target, **options)
