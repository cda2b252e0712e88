"""nearest_neighbors among points themselves, against exact searches."""

from __future__ import annotations

import torch

import ncops

from .case import Bench, Case, Goal, randn

K = 20


def make(sizes, dtype, data, generator):
    return (randn(generator, sizes["N"], sizes["D"]).to(dtype), sizes["K"])


def eager(x, k):
    x = x.float() if x.element_size() < 4 else x
    half = x.square().sum(1) / 2
    score = (x @ x.T - half).fill_diagonal_(-torch.inf)
    return (2 * (half[:, None] - score.topk(k)[0]),)


def faiss(x, k):
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x.numpy())
    return index.search(x.numpy(), k + 1)


def scikit_learn(x, k):
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=torch.get_num_threads())
    return search.fit(x.numpy()).kneighbors()


FORWARD = Bench(
    op="nearest_neighbors", make=make, eager=eager, other="matmul",
    ours=lambda x, k: ncops.nearest_neighbors(x, k=k)[:1],
    peers={"matmul": lambda x, k: x @ x.T, "faiss": faiss, "scikit-learn": scikit_learn},
    flops=lambda s: 2 * s["N"] ** 2 * s["D"], bytes=lambda s, item: item * s["D"] * s["N"],
    base={"N": 10000, "D": 256, "K": K},
    axes={"N": (1000, 10000, 50000), "D": (32, 256, 1024), "K": (1, 20, 128, 512)},
    accuracy={"N": 2000},
)  # fmt: skip
BENCHES = (FORWARD,)
CASES = (
    Case(FORWARD, "10,000 points", {"N": 10000, "D": 256, "K": K}, goal=Goal(0.60)),
)  # fmt: skip
