"""LinearHead: nn.Linear without a target, linear_loss with one, and the same gradients inside DDP and FSDP2."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

import ncops
from ncops.nn import LinearHead

N, D, V, RANKS = 24, 6, 11, 2


def problem() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    linear, x, target = nn.Linear(D, V), torch.randn(N, D), torch.randint(V, (N,))
    target[1::5] = -100
    return linear, x, target


def test_logits_and_loss():
    linear, x, target = problem()
    head = LinearHead.from_linear(linear)
    assert torch.equal(head(x), linear(x))
    found = head(x.view(4, -1, D), target.view(4, -1), z_loss=0.1, softcap=2.0, reduction="sum")
    assert isinstance(found, ncops.LinearLoss) and found.stats.nll.shape == (4, N // 4)
    z = 2 * (linear(x) / 2).tanh()
    rows = target != -100
    truth = F.cross_entropy(z, target, reduction="sum") + 0.1 * z.logsumexp(1)[rows].square().sum()
    for a, b in zip(
        torch.autograd.grad(found.loss, head.parameters()), torch.autograd.grad(truth, linear.parameters()), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loss, truth)
    entropy = torch.distributions.Categorical(logits=linear(x)).entropy().mean()
    torch.testing.assert_close(head(x, nll=0, entropy=1.0).loss, entropy)


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_shared_and_named_as_before(bias):
    linear = nn.Linear(D, V, bias=bias).eval()
    head = LinearHead.from_linear(linear)
    assert head.weight is linear.weight and head.bias is linear.bias and not head.training
    assert list(head.state_dict()) == list(linear.state_dict())
    assert (head.in_features, head.out_features) == (D, V)
    fresh = LinearHead(D, V, bias=bias)
    fresh.load_state_dict(linear.state_dict())
    assert torch.equal(fresh.weight, linear.weight)
    assert LinearHead.from_linear(nn.Linear(D, V, device="meta")).weight.is_meta


def test_random_numbers_are_left_alone():
    linear = nn.Linear(D, V)
    torch.manual_seed(1)
    LinearHead.from_linear(linear)
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.rand(()) == after


class Adapted(nn.Linear):
    """As loralib and PEFT make them: nothing to see before the first step."""

    def __init__(self):
        super().__init__(D, V)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(2, D)), nn.Parameter(torch.zeros(V, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked() -> nn.Linear:
    linear = nn.Linear(D, V)
    linear.register_forward_hook(lambda module, args, output: output.clamp(max=0))
    return linear


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (Adapted, ValueError, "expected no parameters but weight and bias, got lora_A, lora_B"),
        (lambda: parametrizations.weight_norm(nn.Linear(D, V)), ValueError, "got parametrizations.weight.original0"),
        (lambda: Doubled(D, V), ValueError, r"linear: Doubled gives something else than .* would be lost"),
        (hooked, ValueError, "linear: Linear gives something else"),
        (lambda: nn.Conv1d(D, V, 1), TypeError, "linear: expected an nn.Linear, got torch.nn.modules.conv.Conv1d"),
    ],
    ids=["adapter", "parametrization", "subclass", "hook", "other"],
)
def test_more_than_a_product_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        LinearHead.from_linear(make())


def test_autocast_multiplies_in_its_dtype():
    linear, x, target = problem()
    head = LinearHead.from_linear(linear)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(x, target)
    half = [t.detach().bfloat16().requires_grad_() for t in (x, linear.weight, linear.bias)]
    truth = ncops.linear_loss(*half, target)
    assert found.loss.dtype == torch.float32 and torch.equal(found.loss, truth.loss)
    found.loss.backward()
    assert head.weight.grad.dtype == torch.float32
    assert torch.equal(head.weight.grad, torch.autograd.grad(truth.loss, half[1])[0].float())


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        linear = problem()[0]
        self.body, self.head = nn.Linear(D, D), LinearHead.from_linear(linear)

    def forward(self, x, target, **options):
        return self.head(self.body(x).tanh(), target, **options)


def on_rank(rank: int, how: str) -> dict[str, torch.Tensor]:
    _, x, target = problem()
    model, mine = Model(), slice(rank, None, RANKS)
    if how == "ddp":
        model = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (RANKS,))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if "bf16" in how else None)
        if "head" in how:
            fully_shard(model.head, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    for _ in range(2):  # the second step finds gradients, and weights that are shards again
        model.zero_grad()
        model(x[mine], target[mine], num_items=int((target != -100).sum()) / RANKS).loss.backward()
    return {
        name.removeprefix("module."): (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).tolist()
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize(("how", "tolerance"), [("ddp", 1e-5), ("root", 1e-5), ("head", 1e-5), ("head bf16", 2e-2)])
def test_two_ranks_equal_one_process(on_ranks, how, tolerance):
    _, x, target = problem()
    model = Model()
    model(x, target).loss.backward()
    for found in on_ranks(RANKS, on_rank, how):
        for name, p in model.named_parameters():
            torch.testing.assert_close(torch.tensor(found[name]), p.grad, rtol=tolerance, atol=tolerance, msg=name)


def test_a_sharded_layer_is_taken_over_before(on_ranks):
    assert "take the layer over before fully_shard" in on_ranks(RANKS, refusal)[0]


def refusal(rank: int) -> str:
    linear = fully_shard(nn.Linear(D, V), mesh=init_device_mesh("cpu", (RANKS,)))
    with pytest.raises(ValueError) as error:
        LinearHead.from_linear(linear)
    return str(error.value)
