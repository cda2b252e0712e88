"""Where the metrics of a report come from."""

from __future__ import annotations

from typing import NamedTuple


class Paper(NamedTuple):
    """Authors with the year, title, and number at arXiv."""

    authors: str
    title: str
    arxiv: str

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


PAPERS = {
    "papyan": Paper(
        "Papyan, Han and Donoho 2020",
        "Prevalence of neural collapse during the terminal phase of deep learning training",
        "2008.08186",
    ),
    "zhu": Paper(
        "Zhu et al. 2021", "A geometric analysis of neural collapse with unconstrained features", "2105.02375"
    ),
    "galanti": Paper(
        "Galanti, György and Hutter 2021", "On the role of neural collapse in transfer learning", "2112.15121"
    ),
    "tirer": Paper("Tirer, Huang and Niles-Weed 2023", "Perturbation analysis of neural collapse", "2210.16658"),
    "xu": Paper("Xu and Liu 2023", "Quantifying the variability collapse of neural networks", "2306.03440"),
    "liu": Paper(
        "Liu et al. 2023", "Generalizing and decoupling neural collapse via hyperspherical uniformity gap", "2303.06484"
    ),
    "wu": Paper("Wu and Papyan 2024", "Linguistic collapse: neural collapse in (large) language models", "2405.17767"),
    "guo": Paper("Guo et al. 2017", "On calibration of modern neural networks", "1706.04599"),
}
