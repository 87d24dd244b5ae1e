"""PSALM's baseline projector ``swin_conv``: one strided residual block over res5, then a linear layer.

Legend: B batch, h w size of res5, n = ceil(h / 2) * ceil(w / 2) tokens, D width of the language model.
"""

import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM = 0.1
"""Share of a batch in the running statistics."""


class BatchNorm(nn.BatchNorm2d):
    """Normalises in the type of its statistics, which mixed precision (DeepSpeed's) keeps in float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Map [B, C, h, w] to the same shape and type."""
        assert self.running_mean is not None
        assert self.num_batches_tracked is not None
        if self.training:
            self.num_batches_tracked.add_(1)
        kind = self.running_mean.dtype
        normed = F.batch_norm(
            input.to(kind),
            self.running_mean,
            self.running_var,
            self.weight.to(kind),
            self.bias.to(kind),
            self.training,
            MOMENTUM,
            self.eps,
        )
        return normed.to(input.dtype)


class ResidualBlock(nn.Module):
    """Residual block of stride 2 that applies its second convolution twice, as PSALM's weights were trained."""

    def __init__(self, input_dim: int, planes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_dim, planes, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, padding=1, bias=False)
        self.bn2 = BatchNorm(planes)
        self.downsample = nn.Sequential(
            nn.Conv2d(input_dim, planes, kernel_size=1, stride=2, bias=False), BatchNorm(planes)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, input_dim, h, w] to [B, planes, ceil(h / 2), ceil(w / 2)]."""
        hidden = F.relu(self.bn1(self.conv1(features)))
        hidden = self.bn2(self.conv2(self.conv2(hidden)))
        return F.relu(hidden + self.downsample(features))


class SwinConvProjector(nn.Module):
    """Tokens of the whole image from res5; a 1024 x 1024 image gives 256. Parameter names are PSALM's.

    Args:
        input_dim: channels of res5.
        out_dim: D.
        planes: width of the residual block; 2048 in the published weights.
    """

    def __init__(self, input_dim: int, out_dim: int, planes: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(ResidualBlock(input_dim, planes))
        self.fc = nn.Linear(planes, out_dim)

    def train(self, mode: bool = True) -> "SwinConvProjector":
        """As ``nn.Module.train``, but a frozen projector stays in evaluation mode: its statistics stay as they are."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def forward(self, res5: Tensor) -> Tensor:
        """Map [B, input_dim, h, w] to [B, n, D], row by row."""
        return self.fc(self.layer1(res5).flatten(2).transpose(1, 2))
