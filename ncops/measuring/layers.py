"""Class statistics of any layers of a model while it runs: :func:`watch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from ..conventions import Convention
from ..names import Nonfinite, Preset
from ..ops.checks import check_integer, shape
from ..report.collapse import CollapseReport, collapse
from ..report.comparison import Comparison
from ..report.plots.curves import Axis
from ..report.stored import Run
from ..stats.batch import check_batch, leave_out
from ..stats.classes import ClassStatistics
from ..stats.signals import uninterrupted

Pool = Literal["mean", "flatten"] | Callable[[Tensor], Tensor]


class Watched:
    """What :func:`watch` gives. In a ``with`` block the layers' outputs are caught; statistics stay when it is left.

    The block may be entered again, for more data.

    Attributes:
        layers: name -> module. statistics: name -> :class:`ncops.ClassStatistics` of every layer that has run.
    """

    def __init__(self, layers: Mapping[str, nn.Module], num_classes: int, pool: Pool, options: Mapping[str, Any]):
        self.layers, self.statistics = dict(layers), {}
        self._num_classes, self._pool, self._options = num_classes, pool, dict(options)
        self._caught: dict[str, list[Tensor]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Watched:
        if self._handles:
            raise RuntimeError("watch: its block is open already")
        for name, module in self.layers.items():
            self._handles.append(module.register_forward_hook(partial(self._catch, name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._caught = [], {}

    def _catch(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._caught.setdefault(name, []).append(pooled(output, self._pool, name))

    def update(self, labels: Tensor) -> None:
        """Adds what the layers gave in the forward pass just made. Whatever it refuses, no statistics have changed.

        Args:
            labels: ``(N,)`` integer classes of the batch; ``ignore_index`` rows count nowhere.

        Raises:
            RuntimeError: outside of the ``with`` block. ValueError: a layer that has not run since the last update, or
                more than once; labels, widths, dtypes or devices that do not fit.
        """
        if not self._handles:
            raise RuntimeError("update: expected inside the with block of ncops.watch, whose hooks are gone")
        caught, self._caught = self._caught, {}
        ready = {}
        for name in self.layers:
            runs = caught.get(name, [])
            if len(runs) != 1:
                raise ValueError(
                    f"layers: expected one run of {name!r} between two updates, got {len(runs)}; call update(labels) "
                    "after each forward pass, and watch no module that runs twice in one"
                )
            ready[name] = self._checked(name, runs[0], labels)
        with uninterrupted():
            for statistics, x in ready.values():
                statistics.update(x, labels)
            self.statistics = {name: statistics for name, (statistics, _) in ready.items()}

    def _checked(self, name: str, x: Tensor, labels: Tensor) -> tuple[ClassStatistics, Tensor]:
        """The statistics of a layer, and features that they will take."""
        statistics = self.statistics.get(name)
        if statistics is None:
            statistics = ClassStatistics(self._num_classes, x.shape[1], device=x.device, **self._options)
        try:
            rows, y = check_batch(
                x, labels, num_classes=statistics.num_classes, dim=statistics.dim, device=statistics.device,
                ignore_index=statistics.ignore_index, input_dtype=statistics.input_dtype,
            )  # fmt: skip
            leave_out(rows, y, nonfinite=statistics.nonfinite, ignore_index=statistics.ignore_index)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
        return statistics, x

    def reports(self, *, min_count: int = 1, convention: Preset | Convention = "ncops") -> dict[str, CollapseReport]:
        """Name -> :class:`ncops.CollapseReport` of each layer: NC1 and NC2, as no layer is the classifier.

        Args:
            min_count: rows that a class needs to be kept. convention: as :func:`ncops.collapse` takes it.

        Raises:
            ValueError: nothing was seen.
        """
        if not self.statistics:
            raise ValueError("layers: nothing was seen yet: call update(labels) after a forward pass")
        return {
            name: collapse(statistics.compute(min_count=min_count), convention=convention)
            for name, statistics in self.statistics.items()
        }

    def compare(self, *, min_count: int = 1, convention: Preset | Convention = "ncops") -> Comparison:
        """The layers side by side, in their order: ``table()``, ``plot()``, ``to_html(path)``, ``to_frame()``.

        Arguments and errors as in :meth:`reports`.
        """
        reports = self.reports(min_count=min_count, convention=convention)
        runs = [Run(name, report, {}, "") for name, report in reports.items()]
        return Comparison(runs, Axis("layer", list(range(len(runs))), list(reports)))


def pooled(output: Any, pool: Pool, name: str) -> Tensor:
    """One feature ``(N, D)`` per sample of what a layer gave; of a tuple, its first tensor."""
    x = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(x, Tensor):
        raise TypeError(f"layer {name!r}: expected a tensor, or a tuple that begins with one, got {type(x).__name__}")
    x = x.detach()
    if callable(pool):
        x = pool(x)
    elif pool == "flatten":
        x = x.flatten(1) if x.ndim > 1 else x
    elif x.ndim > 3:
        x = x.mean(tuple(range(2, x.ndim)))
    elif x.ndim == 3:
        raise ValueError(
            f"layer {name!r}: gave shape {shape(x)}: say by pool what a feature is, for tokens (N, T, D) "
            "pool=lambda h: h.mean(1) or lambda h: h[:, 0], for signals (N, D, L) lambda h: h.mean(2)"
        )
    if not isinstance(x, Tensor) or x.ndim != 2:
        got = shape(x) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"layer {name!r}: expected features (N, D) after pooling, got {got}")
    return x


def watch(
    model: nn.Module,
    layers: Sequence[str | nn.Module] | str,
    num_classes: int,
    *,
    pool: Pool = "mean",
    scatter: bool = False,
    nonfinite: Nonfinite = "propagate",
    ignore_index: int = -100,
) -> Watched:
    """Class statistics of layers of any torch model while it runs, for collapse layer by layer::

        with ncops.watch(model.eval(), ["layer1", "layer2", "avgpool"], num_classes=10) as watched, torch.no_grad():
            for images, labels in loader:
                model(images)
                watched.update(labels)
        watched.compare().to_html("layers.html")

    Hooks are on the layers inside the block only, also after an error; the model, its mode and its outputs stay as they
    are. Of a batch the pooled features are held, of the data ``C x D`` per layer (and ``D x D`` with scatter).

    Args:
        model: any module. layers: names as in ``model.named_modules()``, or submodules themselves.
        num_classes: C.
        pool: how an output becomes one feature ``(N, D)`` per sample. ``"mean"``: over all dimensions after the
            channels, ``(N, D, H, W)`` to ``(N, D)``, and ``(N, D)`` as it is; ``(N, A, B)`` is refused, as it may be
            tokens or a signal. ``"flatten"``: ``(N, ...)`` to ``(N, D)``. Or a function of the output.
        scatter, nonfinite, ignore_index: as :class:`ncops.ClassStatistics` takes them.

    Returns:
        An object with ``update(labels)``, ``statistics`` (name -> :class:`ncops.ClassStatistics`, which merge and
        save), ``reports()`` (name -> :class:`ncops.CollapseReport`) and ``compare()``
        (:class:`ncops.report.Comparison`).

    Raises:
        ValueError: no layer, one that the model has not, the same twice, an unknown ``pool``.
    """
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in modules.items()}
    found: dict[str, nn.Module] = {}
    for layer in [layers] if isinstance(layers, str) else layers:
        name = layer if isinstance(layer, str) else names.get(id(layer))
        if name not in modules:
            told = repr(layer) if isinstance(layer, str) else f"a {type(layer).__name__}"
            some = ", ".join(list(filter(None, modules))[:8])
            raise ValueError(f"layers: the model has no module {told}; it has {some}{', ...' * (len(modules) > 9)}")
        if name in found:
            raise ValueError(f"layers: expected each once, got {name!r} twice")
        found[name] = modules[name]
    if not found:
        raise ValueError("layers: expected at least one, got none")
    if not callable(pool) and pool not in ("mean", "flatten"):
        raise ValueError(f"pool: expected 'mean', 'flatten' or a function, got {pool!r}")
    options = {"scatter": scatter, "nonfinite": nonfinite, "ignore_index": ignore_index}
    num_classes = check_integer(num_classes, "num_classes", 1)
    ClassStatistics(num_classes, 1, **options)  # refuses an option before the model runs
    return Watched(found, num_classes, pool, options)
