"""Muon for the matrices of a network, Adam for its other weights.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon; torch.optim.Muon) moves a matrix by the orthogonal one
nearest to its averaged gradient, so that directions which gradients seldom show are learned as fast as the others. A
convolution's matrix is of output channels by all that enters each. With its steps scaled to the size of Adam's (Liu et
al., arXiv 2502.16982, "match_rms_adamw") one learning rate serves both. docs/design.md has what it is worth.
"""

from torch import Tensor, nn
from torch.optim import Adam, Muon

_LEAST = 8  # rows and columns; what is narrower, as the last convolution, whose rows are an image's parts, is Adam's


class MuonAdam:
    """The two as one optimizer of `network`, on whose device it must be already: it holds views of its weights."""

    def __init__(self, network: nn.Module, learning_rate: float):
        self._matrices: list[tuple[nn.Parameter, Tensor]] = []  # each weight beside a view of it
        others = []
        for weight in network.parameters():
            if weight.ndim > 1 and min(len(weight), weight[0].numel()) >= _LEAST:
                self._matrices.append((weight, _as_stored(weight.detach(), weight).view(len(weight), -1)))
            else:
                others.append(weight)
        views = [view for _, view in self._matrices]
        muon = Muon(views, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self._both = muon, Adam(others, lr=learning_rate)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._both[0].param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, value: float):
        for optimizer in self._both:
            optimizer.param_groups[0]["lr"] = value

    def step(self):
        """Move the weights by their gradients; a weight that has none stays."""
        for weight, view in self._matrices:
            view.grad = None if weight.grad is None else _as_stored(weight.grad, weight).reshape(view.shape)
        for optimizer in self._both:
            optimizer.step()

    def state_dict(self) -> list[dict]:
        """Of Muon, then of Adam; tensors are not copied."""
        return [optimizer.state_dict() for optimizer in self._both]

    def load_state_dict(self, states: list[dict]):
        """What `state_dict` gave."""
        for optimizer, state in zip(self._both, states, strict=True):
            optimizer.load_state_dict(state)


def _as_stored(values: Tensor, weight: Tensor) -> Tensor:
    """`values` of a weight with its dimensions in the order of memory, channels last or not."""
    return values if weight.is_contiguous() else values.movedim(1, -1)
