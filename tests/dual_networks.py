"""Small networks for the tests of Dual."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scm_core.contract.spec import Batch
from scm_core.dual import jvp


class Network(nn.Module):
    """A small convolutional attention network `F(x, t, condition)` in ordinary PyTorch."""

    def __init__(
        self, channels: int = 16, dropout: float = 0.0, checkpointed: bool = False
    ) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.time = nn.Sequential(nn.Linear(4, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.label = nn.Embedding(3, channels)
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.norm = nn.GroupNorm(2, channels)
        self.token_norm = nn.RMSNorm(channels, eps=1e-6)
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(channels, 2, 3, padding=1)

    def embed(self, t):
        with torch.autocast(t.device.type, enabled=False):
            angle = t[:, None] * torch.tensor([1.0, 0.5], dtype=t.dtype)
            return self.time(torch.cat([angle.sin(), angle.cos()], dim=1))

    def block(self, x, embedding):
        tokens = F.silu(self.norm(x) + embedding[:, :, None, None]).flatten(2).transpose(1, 2)
        tokens = self.token_norm(tokens)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + self.dropout(mixed).transpose(1, 2).unflatten(2, x.shape[2:])

    def forward(self, x, t, condition):
        embedding = self.embed(t) + self.label(condition["label"])
        x = self.stem(x)
        if self.checkpointed:
            x = checkpoint(self.block, x, embedding, use_reentrant=False)
        else:
            x = self.block(x, embedding)
        return self.head(x)


class Ignoring(nn.Module):
    """A network of x alone as a network of (x, t, condition)."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x, t, condition):
        return self.network(x) * t.cos().view(-1, *[1] * (x.ndim - 1))


def batch(samples: int = 5) -> Batch:
    return Batch(torch.randn(samples, 2, 4, 4) / 2, {"label": torch.arange(samples) % 3})


def gradients(network: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


class Perceptron(nn.Module):
    """F(x, t) for x (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.time = nn.Linear(1, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 6)

    def forward(self, x, t, condition=None):
        return self.last(nn.functional.silu(self.norm(self.first(x)) + self.time(t[:, None])))


def data() -> tuple[torch.Tensor, ...]:
    """x (8, 6), t (8,) and their tangents."""
    generator = torch.Generator().manual_seed(0)
    x, dx = (torch.randn(8, 6, generator=generator) for _ in range(2))
    return x, torch.rand(8, generator=generator), dx, torch.rand(8, generator=generator)


def loss_of(module, x, t, dx, dt):
    """A loss in which both F and its tangent have a say."""
    out, tangent = jvp(module, (x, t), (dx, dt))
    return (out - out.detach() - tangent).square().mean()


def perceptron() -> Perceptron:
    torch.manual_seed(0)
    return Perceptron()
