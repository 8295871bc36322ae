"""Networks of the zoo as PyTorch modules: torchvision's own, and from their papers those that it lacks.

The modules have the names of the references that the docstrings of jaxclf/models/backbones give, so that a state dict
of `jaxclf.to_torch` loads with strict keys. Ten classes.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.input_pipeline import import_torchvision

CLASSES = 10


def googlenet() -> nn.Module:
    """torchvision's GoogLeNet with its auxiliary classifiers."""
    return import_torchvision().models.googlenet(
        num_classes=CLASSES, aux_logits=True, transform_input=False, init_weights=False
    )


def efficientnet(stochastic_depth: float) -> nn.Module:
    """torchvision's EfficientNet-B0."""
    return import_torchvision().models.efficientnet_b0(num_classes=CLASSES, stochastic_depth_prob=stochastic_depth)


class Gates(nn.Module):
    """Squeeze-and-excitation as a factor (Hu et al. 2017, section 3): reduction 16, linear layers without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Linear(width, width // 16, bias=False), nn.ReLU(), nn.Linear(width // 16, width, bias=False)
        self.fc = nn.Sequential(*layers, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n c h w]."""
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


def se_resnet50() -> nn.Module:
    """torchvision's ResNet-50, every bottleneck of it with gates behind its last BatchNorm."""
    net = import_torchvision().models.resnet50(num_classes=CLASSES)
    for block in (block for number in (1, 2, 3, 4) for block in net.get_submodule(f"layer{number}")):
        block.se = Gates(block.bn3.num_features)
        block.bn3.register_forward_hook(lambda _, given, out, gates=block.se: gates(out))
    return net


class StandardisedConv(nn.Conv2d):
    """A convolution without bias, of weights with mean 0 and variance 1 in each filter (Qiao et al. 2019)."""

    def __init__(self, entering: int, width: int, side: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(entering, width, side, stride, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n k i j]."""
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (var + 1e-10).sqrt(), None, self.stride, self.padding)


class BiTUnit(nn.Module):
    """Pre-activation bottleneck with GroupNorm, stride on the 3x3 (Kolesnikov et al. 2019)."""

    def __init__(self, entering: int, middle: int, stride: int) -> None:
        super().__init__()
        self.gn1, self.conv1 = nn.GroupNorm(32, entering), StandardisedConv(entering, middle, 1)
        self.gn2, self.conv2 = nn.GroupNorm(32, middle), StandardisedConv(middle, middle, 3, stride, 1)
        self.gn3, self.conv3 = nn.GroupNorm(32, middle), StandardisedConv(middle, 4 * middle, 1)
        self.downsample = None if entering == 4 * middle else StandardisedConv(entering, 4 * middle, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n k i j]."""
        y = F.relu(self.gn1(x))
        x = x if self.downsample is None else self.downsample(y)
        y = F.relu(self.gn2(self.conv1(y)))
        return x + self.conv3(F.relu(self.gn3(self.conv2(y))))


def bit_r50x1() -> nn.Module:
    """BiT-R50x1; the max pool sees zeros around the image, and the last layer is a 1x1 convolution."""
    root = OrderedDict(conv=StandardisedConv(3, 64, 7, 2, 3), pad=nn.ConstantPad2d(1, 0.0), pool=nn.MaxPool2d(3, 2))
    stages, width = OrderedDict(), 64
    for number, count in enumerate((3, 4, 6, 3), start=1):
        units, middle = OrderedDict(), 32 * 2**number
        for index in range(1, count + 1):
            units[f"unit{index:02d}"] = BiTUnit(width, middle, 2 if number > 1 and index == 1 else 1)
            width = 4 * middle
        stages[f"block{number}"] = nn.Sequential(units)
    head = OrderedDict[str, nn.Module](gn=nn.GroupNorm(32, width), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1))
    head["conv"] = nn.Conv2d(width, CLASSES, 1)
    parts = {"root": root, "body": stages, "head": head}
    net = OrderedDict[str, nn.Module]((name, nn.Sequential(part)) for name, part in parts.items())
    return nn.Sequential(net | {"flatten": nn.Flatten()})


class WideBlock(nn.Module):
    """bn-relu-conv3-bn-relu-conv3 and shortcut, a 1x1 conv where the width changes (Zagoruyko and Komodakis 2016)."""

    def __init__(self, entering: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(entering), nn.Conv2d(entering, width, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = None if entering == width else nn.Conv2d(entering, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n k i j]."""
        y = F.relu(self.bn1(x))
        x = x if self.convShortcut is None else self.convShortcut(y)
        return x + self.conv2(F.relu(self.bn2(self.conv1(y))))


def wrn40_2() -> nn.Module:
    """WRN-40-2: three stages of six blocks, 32, 64 and 128 channels."""
    net, width = OrderedDict[str, nn.Module](conv1=nn.Conv2d(3, 16, 3, 1, 1, bias=False)), 16
    for number in (1, 2, 3):
        row = []
        for index in range(6):
            row.append(WideBlock(width, 16 * 2**number, 2 if number > 1 and index == 0 else 1))
            width = 16 * 2**number
        net[f"block{number}"] = nn.Sequential(OrderedDict(layer=nn.Sequential(*row)))
    net |= {"bn1": nn.BatchNorm2d(width), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(net | {"fc": nn.Linear(width, CLASSES)})


def dense_unit(entering: int, width: int, side: int = 1, stride: int = 1) -> nn.Module:
    """Convolution, BatchNorm, ReLU6."""
    layer = nn.Conv2d(entering, width, side, stride, side // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=layer, norm=nn.BatchNorm2d(width), relu=nn.ReLU6()))


def depthwise(width: int, stride: int = 1) -> nn.Module:
    """3x3 depthwise convolution and BatchNorm."""
    layer = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
    return nn.Sequential(OrderedDict(dwconv=layer, norm=nn.BatchNorm2d(width)))


class HarDBlock(nn.Module):
    """Separable layers, of which i reads i - 1, i - 2, i - 4 ... while the step divides i (Chao et al. 2019)."""

    def __init__(self, entering: int, growth: int, count: int) -> None:
        super().__init__()
        widths, layers = [entering], []
        self.links = [[i - 2**j for j in range(5) if i % 2**j == 0 and i >= 2**j] for i in range(1, count + 1)]
        for links in self.links:
            width = int(growth * 1.6 ** (len(links) - 1) + 1) // 2 * 2
            pair = dense_unit(sum(widths[link] for link in links), width), depthwise(width)
            layers.append(nn.Sequential(OrderedDict(layer1=pair[0], layer2=pair[1])))
            widths.append(width)
        self.layers, self.width = nn.ModuleList(layers), sum(widths[1:-1:2]) + widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n k h w]: the outputs of odd layers and of the last."""
        parts = [x]
        for links, layer in zip(self.links, self.layers, strict=True):
            parts.append(layer(torch.cat([parts[link] for link in links], 1)))
        return torch.cat([*parts[1:-1:2], parts[-1]], 1)


def hardnet39ds() -> nn.Module:
    """HarDNet-39DS, one list of layers as in the reference."""
    base, width = [dense_unit(3, 24, 3, 2), dense_unit(24, 48), depthwise(48, 2)], 48
    for growth, count, after in ((16, 4, 96), (20, 16, 320), (64, 8, 640), (160, 4, 1024)):
        block = HarDBlock(width, growth, count)
        base += [block, dense_unit(block.width, after)]
        base += [] if after == 1024 else [depthwise(after, 2)]
        width = after
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.05), nn.Linear(width, CLASSES)
    return nn.Sequential(OrderedDict(base=nn.Sequential(*base, nn.Sequential(*end))))


def follow(net: nn.Module, draws: Iterable[list[np.ndarray]]) -> None:
    """Let the dropouts of a network, torchvision's StochasticDepth among them, multiply by given factors.

    Each call of the network takes the next list of `draws`, and must use all of it, in the order of its calls.
    """
    steps, factors = iter(draws), list[np.ndarray]()

    def drop(x: Tensor) -> Tensor:
        return x * torch.from_numpy(factors.pop(0))

    def begin(*_: Any) -> None:
        factors.extend(next(steps))

    def end(*_: Any) -> None:
        assert not factors, f"{len(factors)} dropouts of ours are not in the twin"

    for module in net.modules():
        if type(module).__name__ in ("Dropout", "StochasticDepth") and getattr(module, "p", 0.0) > 0:
            module.forward = drop
    net.register_forward_pre_hook(begin)
    net.register_forward_hook(end)


class SamePadding(nn.Conv2d):
    """A convolution with TensorFlow's padding: ceil(size / stride) outputs, the odd pixel last."""

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n d i j]."""
        pads = []
        for length in (x.shape[3], x.shape[2]):
            missing = max(0, (-(-length // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - length)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


class LiteBlock(nn.Module):
    """EfficientNet-Lite's block: expansion, depthwise convolution, projection, ReLU6, no gates."""

    def __init__(self, entering: int, width: int, expansion: int, side: int, stride: int) -> None:
        super().__init__()
        inner = entering * expansion
        self.expands, self.added = expansion > 1, stride == 1 and entering == width
        if self.expands:
            self._expand_conv = nn.Conv2d(entering, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self._depthwise_conv = SamePadding(inner, inner, side, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = nn.Conv2d(inner, width, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n d i j]."""
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        return self._bn2(self._project_conv(inner)) + (x if self.added else 0)


class Lite0(nn.Module):
    """EfficientNet-Lite0 (tensorflow/tpu, models/official/efficientnet/lite), with lukemelas's names."""

    STAGES = (
        *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
        *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
    )
    """Expansion, width, blocks, stride of the first, side of the depthwise kernel."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SamePadding(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, eps=1e-3)
        blocks, entering = [], 32
        for expansion, width, count, stride, side in self.STAGES:
            for index in range(count):
                blocks.append(LiteBlock(entering, width, expansion, side, 1 if index else stride))
                entering = width
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, eps=1e-3)
        self.last, self._fc = nn.ReLU6(), nn.Linear(1280, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n k]."""
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        return self._fc(self.last(self._bn1(self._conv_head(x))).mean((2, 3)))
