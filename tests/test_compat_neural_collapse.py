"""The drop-in against plain definitions in float64, and against the library itself where it is installed."""

from __future__ import annotations

import importlib.util
import inspect
import math
import subprocess
import sys

import pytest
import torch

import ncops.compat.neural_collapse as ours
from ncops.compat.neural_collapse import accumulate, kernels, measure, util

HAS_LIBRARY = importlib.util.find_spec("neural_collapse") is not None
if HAS_LIBRARY:
    import neural_collapse as library
needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason="the library neural_collapse is not installed")

K, D, N = 7, 5, 200


@pytest.fixture
def data():
    labels = torch.randint(0, K, (N,))
    means = torch.randn(K, D) * 3
    x = means[labels] + torch.randn(N, D)
    return x, labels, torch.randn(K, D)


def split(x, y, size=64):
    for start in range(0, len(x), size):
        yield x[start : start + size], y[start : start + size]


def three_passes(package, x, y, weight, dtype=torch.float32):
    """What the library's README does."""
    names = ("Mean", "VarNorm", "Covar", "Dec")
    mean, var, cov, dec = (getattr(package.accumulate, f"{name}Accumulator")(K, D, "cpu", dtype) for name in names)
    for batch in split(x, y):
        mean.accumulate(*batch)
    means, global_mean = mean.compute()
    for batch in split(x, y):
        var.accumulate(*batch, means)
        cov.accumulate(*batch, means)
        dec.accumulate(*batch, weight, means)
    return mean, var, cov, dec, means, global_mean


def naive(x, y, weight):
    x, weight = x.double(), weight.double()
    means = torch.stack([x[y == c].mean(0) for c in range(K)])
    deviations = x - means[y]
    variances = torch.stack([deviations[y == c].square().sum(1).mean() for c in range(K)])
    agree = (x @ weight.T).argmax(1) == torch.cdist(x, means).argmin(1)
    hits = torch.bincount(y[agree], minlength=K)
    return means, variances, deviations.T @ deviations / len(x), hits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, float])
def test_three_passes(data, dtype):
    x, y, weight = data
    mean, var, cov, dec, means, global_mean = three_passes(ours, x, y, weight, dtype)
    truth = naive(x, y, weight)
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(means.double(), truth[0], **tolerance)
    torch.testing.assert_close(global_mean.double(), truth[0].mean(0), **tolerance)
    torch.testing.assert_close(var.compute()[0].double(), truth[1], **tolerance)
    torch.testing.assert_close(cov.compute().double(), truth[2], **tolerance)
    assert torch.equal(dec.totals.long(), truth[3])
    assert means.dtype == cov.totals.dtype == (torch.float32 if dtype == torch.float32 else torch.float64)
    assert mean.ns_samples.dtype == torch.int32 and torch.equal(mean.ns_samples.long(), torch.bincount(y, minlength=K))
    assert measure.clf_ncc_agreement(dec) == pytest.approx(truth[3].sum().item() / N)
    shares = truth[3] / torch.bincount(y, minlength=K)
    assert measure.clf_ncc_agreement(dec, weighted=False) == pytest.approx(shares.mean().item())
    assert measure.clf_ncc_agreement(dec, [0, 2]) == pytest.approx(
        (truth[3][[0, 2]].sum() / torch.bincount(y, minlength=K)[[0, 2]].sum()).item()
    )


def all_measures(package, data, tile):
    x, y, weight = data
    mean, var, cov, dec, means, g = three_passes(package, x, y, weight)
    v, sigma = var.compute()[0], cov.compute()
    m, k = package.measure, package.kernels
    found = {
        "pinv": m.covariance_ratio(sigma, means, g), "quotient": m.covariance_ratio(sigma, means, g, "quotient"),
        "cdnv": m.variability_cdnv(v, means, tile_size=tile), "cdnv2": m.variability_cdnv(v, means, 2, tile),
        "norms": m.mean_norms(means, g), "log norms": m.mean_norms(means, g, [torch.log]),
        "interference": m.interference_grid(means, g), "dot": m.similarities(weight, means, g),
        "cos": m.similarities(weight, means, g, cos=True), "distances": m.distance_norms(weight, means, g),
        "raw distances": m.distance_norms(weight, means, g, norm=False), "etf": m.simplex_etf_error(means, g),
        "duality": m.self_duality_error(weight, means, g), "structure": m.structure_error(means, weight),
        "agreement": m.clf_ncc_agreement(dec), "grid": k.class_dist_norm_vars(v, means, 2, tile),
        "ood": m.orthogonality_deviation(means, weight[0]),
    }  # fmt: skip
    for name in ("dist", "log", "riesz"):
        kernel = getattr(k, f"{name}_kernel")
        found[f"{name} stats"] = k.kernel_stats(means, g, kernel, tile)
        found[f"{name} grid"] = k.kernel_grid(means, g, kernel, tile)
    found["own kernel"] = k.kernel_stats(means, g, lambda data, tile_size=None: data @ data.mT)
    return found


@needs_library
@pytest.mark.parametrize("tile", [None, 3])  # K mod 3 == 1 breaks some of the library's tiles, see below
def test_every_measure_agrees_with_the_library(data, tile):
    if tile == 3:
        theirs = all_measures(library, data, 4)
    else:
        theirs = all_measures(library, data, None)
    mine = all_measures(ours, data, tile)
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            off = ~torch.eye(K, dtype=torch.bool) if value.ndim == 2 else slice(None)  # the diagonal divides by zero
            torch.testing.assert_close(mine[name][off].double(), value[off].double(), rtol=2e-4, atol=1e-5, msg=name)
        else:
            assert mine[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name
            assert type(mine[name]) is type(value), name


@needs_library
@pytest.mark.parametrize("module", ["accumulate", "kernels", "measure", "util"])
def test_names_and_arguments_are_the_library_s(module):
    theirs, mine = getattr(library, module), getattr(ours, module)
    for name, thing in vars(theirs).items():
        if getattr(thing, "__module__", None) != theirs.__name__:
            continue
        assert hasattr(mine, name), name
        if inspect.isfunction(thing):
            wanted, got = (list(inspect.signature(f).parameters) for f in (thing, getattr(mine, name)))
            assert got == wanted, name
        else:
            for method, function in inspect.getmembers(thing, inspect.isfunction):
                if not method.startswith("_"):
                    got = inspect.signature(getattr(getattr(mine, name), method)).parameters
                    assert list(got) == list(inspect.signature(function).parameters), f"{name}.{method}"


def test_measures_by_definition(data):
    found = all_measures(ours, data, None)
    means, variances, sigma, _ = naive(*data)
    centred = means - means.mean(0)
    between = centred.T @ centred / K
    assert found["pinv"] == pytest.approx((sigma @ torch.linalg.pinv(between)).trace().item() / K, rel=1e-4)
    assert found["quotient"] == pytest.approx((sigma.trace() / between.trace()).item(), rel=1e-5)
    i, j = torch.triu_indices(K, K, 1)
    d2 = (means[i] - means[j]).square().sum(1)
    for name, power in (("cdnv", 1), ("cdnv2", 2)):
        assert found[name] == pytest.approx(((variances[i] + variances[j]) / 2 / d2**power).mean().item(), rel=1e-5)
    unit = centred / centred.norm(dim=1, keepdim=True)
    distance = (unit[i] - unit[j]).norm(dim=1)
    for name, value in (("dist", distance), ("log", -distance.log()), ("riesz", distance ** (2 - D))):
        mean, var = found[f"{name} stats"]
        assert mean == pytest.approx(value.mean().item(), rel=1e-4), name
        assert var == pytest.approx(value.var(correction=0).item(), rel=1e-3), name
    gram = unit @ unit.T
    own = gram[i, j]
    assert found["own kernel"] == pytest.approx((own.mean().item(), own.var(correction=0).item()), rel=1e-4)
    etf = (torch.eye(K) - 1 / K) / math.sqrt(K - 1)
    g = centred @ centred.T
    assert found["etf"] == pytest.approx((g / g.norm() - etf).norm().item(), rel=1e-4)


# ---- where the library fails or is wrong


def test_batch_of_one_row(data):
    x, y, weight = data
    for name in ("Mean", "VarNorm", "Covar", "Dec"):
        accumulator = getattr(accumulate, f"{name}Accumulator")(K, D)
        more = {"Mean": (), "VarNorm": (weight,), "Covar": (weight,), "Dec": (weight, weight)}[name]
        counts, totals = accumulator.accumulate(x[:1], y[:1], *more)
        assert counts.sum() == 1 and totals.isfinite().all()
        accumulator.accumulate(x[1:2], y[1:2, None], *more)  # labels (B, 1)
        accumulator.accumulate(x[2], y[2], *more)  # a row without its batch dimension
        assert accumulator.ns_samples.sum() == 3


def test_negative_labels_count_nowhere(data):
    x, y, weight = data
    marked = torch.cat([y, torch.tensor([-100, -1])])
    more = torch.cat([x, 1e3 * torch.ones(2, D)])
    for a, b in zip(three_passes(ours, x, y, weight)[:4], three_passes(ours, more, marked, weight)[:4], strict=True):
        assert torch.equal(a.ns_samples, b.ns_samples)
        torch.testing.assert_close(a.totals, b.totals, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match=f"Y: expected labels below {K}, got {K}"):
        accumulate.MeanAccumulator(K, D).accumulate(x, y.clamp(min=0) * 0 + K)


def test_nan_stays_in_its_class(data):
    x, y, weight = data
    x = x.clone()
    x[3] = math.nan
    mean, var, _, dec, means, _ = three_passes(ours, x, y, weight.clone())
    bad = torch.arange(K) == y[3]
    assert means[bad].isnan().all() and means[~bad].isfinite().all()
    assert var.totals[~bad].isfinite().all()


def test_half_precision_and_gradients(data):
    x, y, weight = data
    head = torch.nn.Linear(D, K, bias=False)  # its weight requires a gradient
    dec = accumulate.DecAccumulator(K, D)
    dec.accumulate(x, y, head.weight, naive(*data)[0].float())
    assert not dec.totals.requires_grad
    half = three_passes(ours, x.bfloat16(), y, weight.bfloat16())
    truth = naive(x.bfloat16(), y, weight.bfloat16())
    torch.testing.assert_close(half[4].double(), truth[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(half[3].totals.long(), truth[3])
    bf16_means = accumulate.VarNormAccumulator(K, D)
    bf16_means.accumulate(x, y, half[4].bfloat16())
    assert bf16_means.totals.isfinite().all() and len(bf16_means.hash_M) == 64


def test_weighted_means_and_empty_classes(data):
    x, y, _ = data
    mean = accumulate.MeanAccumulator(K, D)
    mean.accumulate(x, y.where(y != 2, 1))
    average, overall = mean.compute(weighted=True)
    torch.testing.assert_close(overall, x.mean(0))
    assert (average[2] == 0).all() and mean.filter_indices_by_n_samples(1).tolist() == [0, 1, 3, 4, 5, 6]
    assert mean.filter_indices_by_n_samples(0, 1).tolist() == [2]  # one class left: still a list of classes
    chosen, center = mean.compute([0, 1])
    torch.testing.assert_close(center, chosen.mean(0))
    assert mean.compute(mean.filter_indices_by_n_samples(0, 1))[0].shape == (1, D)


@pytest.mark.parametrize("of", (lambda m: m, lambda m: m[:, None], lambda m: m.numpy(), lambda m: m.tolist()))
def test_masks_select_classes(data, of):
    x, y, _ = data
    mean = accumulate.MeanAccumulator(K, D)
    mean.accumulate(x, y.where(y != 2, 1))
    mask = mean.ns_samples > mean.ns_samples.float().mean()
    assert mask[1] and not mask[2]
    means, counts = mean.totals[mask] / mean.ns_samples[mask, None], mean.ns_samples[mask].float()
    chosen, center = mean.compute(of(mask))
    torch.testing.assert_close(chosen, means)
    torch.testing.assert_close(center, means.mean(0))
    torch.testing.assert_close(mean.compute(of(mask), weighted=True)[1], counts @ means / counts.sum())


@pytest.mark.parametrize(
    "idxs, classes",
    (
        (slice(0, 3), [0, 1, 2]),
        (slice(None, None, 3), [0, 3, 6]),
        ((1, 3), [1, 3]),
        (range(2), [0, 1]),
        ([-1], [6]),
        ([], []),
    ),
)
def test_what_else_selects_classes(data, idxs, classes):
    mean = accumulate.MeanAccumulator(K, D)
    every = mean.accumulate(*data[:2]) and mean.compute()[0]
    assert torch.equal(mean.compute(idxs)[0], every[classes])


@pytest.mark.parametrize("idxs", ([K], [True] * (K - 1), [0.5], torch.ones(2 * K, dtype=torch.bool)))
def test_selections_that_are_none(idxs):
    with pytest.raises(IndexError, match=f"idxs: expected classes below {K}, a mask of them or a slice"):
        accumulate.MeanAccumulator(K, D).compute(idxs)


@pytest.mark.parametrize("made", (False, True))
@pytest.mark.parametrize("used", (False, True))
def test_inference_mode(data, made, used):
    x, y, weight = data
    expected = three_passes(ours, x, y, weight)
    with torch.inference_mode(made):
        accumulators = [getattr(accumulate, f"{name}Accumulator")(K, D) for name in ("Mean", "VarNorm", "Covar", "Dec")]
        mean, var, cov, dec = accumulators
        mean.accumulate(x, y)
        means = mean.compute()[0]
    with torch.inference_mode(used):
        head = weight.clone()
        for batch in split(x, y):
            var.accumulate(*batch, means)
            cov.accumulate(*batch, means)
            dec.accumulate(*batch, head, means)
    for mine, theirs in zip(accumulators, expected, strict=False):
        torch.testing.assert_close(mine.totals, theirs.totals)
    assert cov.hash_M == util.hashify(means) and dec.hash_W == util.hashify(weight)
    with torch.inference_mode(made):
        means += 1  # also where nothing counts versions
    with pytest.raises(ValueError, match="M: expected the same tensor in every batch"):
        cov.accumulate(x, y, means)


def test_a_float32_head_decides_half_precision_features_unrounded():
    weight = torch.randn(1000, 64)
    labels = torch.arange(4000) % 1000
    x = (0.3 * weight[labels] + torch.randn(4000, 64)).bfloat16()
    dec = accumulate.DecAccumulator(1000, 64)
    for batch in split(x, labels, 1000):
        dec.accumulate(*batch, weight, weight)
    nearest = torch.cdist(x.double(), weight.double()).argmin(1)

    def agreeing(head):
        return torch.bincount(labels[(x.double() @ head.double().T).argmax(1) == nearest], minlength=1000)

    assert torch.equal(dec.totals.long(), agreeing(weight))
    assert not torch.equal(dec.totals.long(), agreeing(weight.bfloat16()))


def test_ignored_rows_that_agree_are_not_of_class_0():
    decisions, eye = accumulate.DecAccumulator(2, 2), torch.eye(2)
    decisions.accumulate(eye[[0, 0, 1, 0]], torch.tensor([-1, 0, 1, -100]), eye, eye)
    assert decisions.ns_samples.tolist() == decisions.totals.tolist() == [1, 1]


def test_the_grid_of_riesz_by_value():
    rows = torch.tensor([[0.0] * 5, [2.0, 0, 0, 0, 0], [0, 0, 3.0, 0, 0]])  # D - 2 = 3
    grid = kernels.riesz_kernel(rows)
    found = [float(grid[i, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found == pytest.approx([2**-3, 3**-3, 13**-1.5]) and grid.dtype == torch.float64


def test_a_grid_is_of_directions_about_the_given_centre():
    grid = kernels.kernel_grid(torch.tensor([[3.0, 1.0], [1.0, 5.0]]), torch.tensor([1.0, 1.0]))
    assert float(grid[0, 1]) == pytest.approx(2**0.5)


def test_a_row_of_zeros_has_no_direction():
    rows = util.normalize(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    torch.testing.assert_close(rows, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


def test_classes_by_their_number_of_rows():
    accumulator = accumulate.MeanAccumulator(4, 2)
    labels = torch.arange(4).repeat_interleave(torch.tensor([0, 3, 5, 7]))
    accumulator.accumulate(torch.ones(15, 2), labels)
    for bounds, classes in (((), [0, 1, 2, 3]), ((3,), [1, 2, 3]), ((4,), [2, 3]), ((0, 5), [0, 1]), ((3, 7), [1, 2])):
        assert accumulator.filter_indices_by_n_samples(*bounds).tolist() == classes, bounds


def test_one_row_tiles(data):
    x = data[0][:7]
    for tile in (1, 2, 3, 6, 7, 50, None):  # 7 mod 2, 3 and 6 leave one row
        torch.testing.assert_close(kernels.dist_kernel(x, tile), torch.cdist(x, x), atol=1e-4, rtol=1e-4)
        grid = kernels.class_dist_norm_vars(torch.ones(7), x, 1.0, tile)
        i, j = torch.triu_indices(7, 7, 1)
        torch.testing.assert_close(grid[i, j], 1 / (x[i] - x[j]).square().sum(1), rtol=1e-4, atol=1e-6)
    assert kernels.dist_kernel(x[:0]).shape == (0, 0)


def test_riesz_in_many_dimensions_is_no_zero():
    mean, _ = kernels.kernel_stats(torch.randn(5, 512), kernel=kernels.riesz_kernel)
    assert 0 < mean < 1e-60


def test_means_with_an_offset_of_mixed_precision():
    means = torch.randn(4, 9, dtype=torch.float64) + 10
    sigma = torch.eye(9, dtype=torch.float64)
    exact = measure.covariance_ratio(sigma, means, means.mean(0))
    assert measure.covariance_ratio(sigma, means, means.float().mean(0)) == pytest.approx(exact, rel=1e-5)
    assert measure.covariance_ratio(sigma, means, means.mean(0), "svd") == pytest.approx(exact)


def test_a_centre_that_is_the_mean_but_for_roundings_is_no_direction():
    """Off by six roundings of float32 in every coordinate, which together are more than the rank rule forgives."""
    means = (torch.randn(32, 400) + 1).float()
    sigma, own = torch.eye(400), means.double().mean(0)
    size = means.double().square().mean(0).sqrt()
    near = (own + 6 * torch.finfo(torch.float32).eps * size).float()
    exact = measure.covariance_ratio(sigma, means, own)
    assert measure.covariance_ratio(sigma, means, near) == pytest.approx(exact, rel=1e-5)
    far = (own + 0.01 * size).float()
    assert measure.covariance_ratio(sigma, means, far) > 2 * exact  # a direction of its own


def test_similarities_of_a_narrow_head_are_those_of_wide_means():
    weight, means = torch.randn(6, 9).bfloat16(), torch.randn(6, 9)
    found = measure.similarities(weight, means)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (weight.float() * means).sum(1))


def test_self_duality_is_about_the_given_centre():
    weight, means, centre = torch.randn(6, 9), torch.randn(6, 9) + 1, torch.randn(9)
    centred = (means - centre).double()
    gram = weight.double() @ centred.T
    simplex = (torch.eye(6) - 1 / 6) / 5**0.5
    expected = float((gram / gram.norm() - simplex).norm())
    assert measure.self_duality_error(weight, means, centre) == pytest.approx(expected, rel=1e-6)


def test_one_coordinate_far_away_does_not_make_two_centres_one():
    means = 1e-3 * torch.randn(40, 9, dtype=torch.float64)
    means[:, 4] += 1e5
    center = means.mean(0) + 1e-3 * (torch.arange(9) != 4)
    centred = means - center
    between = centred.T @ centred / 40
    exact = torch.linalg.inv(between).trace() / 40
    assert measure.covariance_ratio(torch.eye(9).double(), means, center) == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize("kind", [lambda y: y.numpy(), lambda y: y.tolist(), lambda y: y.numpy().astype("int32")])
def test_labels_that_are_no_tensor(data, kind):
    x, y, _ = data
    mean, expected = accumulate.MeanAccumulator(K, D), accumulate.MeanAccumulator(K, D)
    mean.accumulate(x, kind(y))
    expected.accumulate(x, y)
    assert torch.equal(mean.totals, expected.totals) and torch.equal(mean.ns_samples, expected.ns_samples)
    assert torch.equal(mean.class_idxs(x, kind(y)), expected.class_idxs(x, y))
    with pytest.raises(ValueError, match="Y: expected 200 integer labels, got torch.float64"):
        mean.accumulate(x, y.double().numpy())


def test_means_must_not_change(data):
    x, y, weight = data
    var = accumulate.VarNormAccumulator(K, D)
    var.accumulate(x, y, weight)
    var.accumulate(x, y, weight.clone())  # another tensor of the same values will do
    counts = var.ns_samples.clone()
    with pytest.raises(ValueError, match="M: expected the same tensor in every batch"):
        var.accumulate(x, y, weight + 1)
    weight += 1
    with pytest.raises(ValueError, match="M: expected the same tensor in every batch"):
        var.accumulate(x, y, weight)
    assert torch.equal(var.ns_samples, counts)


def test_attributes_are_assigned(data):
    """As code does that loads totals from a file."""
    x, y, weight = data
    mean, var, *_, means, _ = three_passes(ours, x, y, weight)
    again = accumulate.VarNormAccumulator(K, D)
    again.ns_samples, again.totals = var.ns_samples.clone()[:, None].squeeze(), var.totals.clone()
    again.hash_M = util.hashify(means)
    again.accumulate(x, y, means)
    torch.testing.assert_close(again.compute()[0], var.compute()[0])
    other = accumulate.VarNormAccumulator(K, D)
    other.hash_M = "something else"
    with pytest.raises(ValueError, match="M: expected the same tensor"):
        other.accumulate(x, y, means)
    dec = accumulate.DecAccumulator(K, D)
    assert dec.index is None
    dec.create_index(means)
    dec.accumulate(x, y, weight)
    assert dec.index is not None and dec.hash_M == util.hashify(means) and dec.hash_W == util.hashify(weight)


def test_one_pass_never_hashes(data, monkeypatch):
    x, y, weight = data

    def hashed(_):
        raise AssertionError("hashed")

    monkeypatch.setattr(accumulate, "hashify", hashed)
    three_passes(ours, x, y, weight)


def test_errors(data):
    x, y, weight = data
    with pytest.raises(ValueError, match=r"X: expected shape \(B, D\) with D = 5, got \(200, 4\)"):
        accumulate.MeanAccumulator(K, D).accumulate(x[:, :4], y)
    with pytest.raises(ValueError, match="Y: expected 200 integer labels"):
        accumulate.MeanAccumulator(K, D).accumulate(x, y[:7])
    with pytest.raises(ValueError, match=r"M: expected shape \(K, D\)"):
        accumulate.VarNormAccumulator(K, D).accumulate(x, y, weight[:3])
    with pytest.raises(ValueError, match="M: expected shape"):
        accumulate.DecAccumulator(K, D).accumulate(x, y, weight)
    with pytest.raises(ValueError, match="idxs: expected None"):
        accumulate.CovarAccumulator(K, D).compute([0, 1])
    with pytest.raises(ValueError, match="m_G_ood"):
        measure.orthogonality_deviation(weight)
    with pytest.raises(NotImplementedError, match="metric: expected 'pinv'"):
        measure.covariance_ratio(torch.eye(D), weight, metric="nonsense")
    assert math.isnan(measure.simplex_etf_error(weight[:1]))


def test_install_in_a_process_of_its_own():
    code = (
        "import ncops.compat as compat; compat.install(replace=True)\n"
        "from neural_collapse.accumulate import MeanAccumulator\n"
        "import neural_collapse, neural_collapse.measure as measure\n"
        "import ncops.compat.neural_collapse as ours\n"
        "assert neural_collapse is ours and measure is ours.measure\n"
        "assert MeanAccumulator is ours.accumulate.MeanAccumulator\n"
        "compat.install()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
