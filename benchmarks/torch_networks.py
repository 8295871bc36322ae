"""The networks of jaxclf as PyTorch modules, from the same sources: rivals of train_step.py, twins of tests/parity.

A state dict of `jaxclf.to_torch` loads into them with strict keys. Small networks stand here (CIFAR ResNets with the
thesis's rebuilt block, LeNets, DenseNet-BC); ImageNet networks are torchvision's own modules, whose end is rebuilt here
where `maps` asks for it. Layouts and names: the docstrings of jaxclf/models/backbones; heads: jaxclf/models/heads.py.
"""

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxclf.config import ModelConfig
from jaxclf.errors import UsageError
from jaxclf.models.backbones import densenet_cifar, resnet_cifar
from jaxclf.models.classifier import Classifier
from jaxclf.models.matrices import matrix

TORCHVISION = r"resnet(18|34|50|101|152)|mobilenet_v2|shufflenet_v2_x\d_\d|densenet(121|161|169|201)"
"""Names of torchvision.models that are built there."""


def unit(x: Tensor) -> Tensor:
    """Divide rows [n d] by their norm + 1e-8."""
    return x / (x.norm(dim=1, keepdim=True) + 1e-8)


class Orthogonal(nn.Module):
    """y = W h + b with a W that is loaded and never trained; with `normalise`, of the unit vector of h."""

    weight: Tensor

    def __init__(self, features: int, classes: int, bias: bool, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise
        self.register_buffer("weight", torch.zeros(classes, features))
        self.bias = nn.Parameter(torch.zeros(classes)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[n d] -> [n k]."""
        return F.linear(unit(x) if self.normalise else x, self.weight, self.bias)


class Hadamard(nn.Module):
    """y = -s H h / (|h| + 1e-8) + b; as printed, without `normalise`: y = s H h + b."""

    weight: Tensor

    def __init__(self, features: int, classes: int, bias: bool, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise
        rows = torch.from_numpy(matrix("hadamard", classes, features)).float()
        self.register_buffer("weight", rows, persistent=False)  # exact: state dicts go without it
        self.scale = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(classes)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[n d] -> [n k]."""
        if self.normalise:
            x = -unit(x)
        y = self.scale * F.linear(x, self.weight)
        return y if self.bias is None else y + self.bias


class Simplex(nn.Module):
    """y = W N h: N is learned [k - 1, d], the rows of W are the simplex's corners (RePoNet)."""

    weight: Tensor

    def __init__(self, features: int, classes: int, bias: bool) -> None:
        super().__init__()
        del bias
        corners = torch.from_numpy(matrix("simplex", classes, classes - 1)).float()
        self.register_buffer("weight", corners, persistent=False)
        self.neck = nn.Parameter(torch.zeros(features, classes - 1))

    def forward(self, x: Tensor) -> Tensor:
        """[n d] -> [n k]."""
        return F.linear(x @ self.neck, self.weight)


class Cosine(nn.Module):
    """y = s W h / (|w| |h|): W is learned, s too unless it is given."""

    def __init__(self, features: int, classes: int, bias: bool, scale: float | None = None) -> None:
        super().__init__()
        del bias
        self.weight = nn.Parameter(torch.zeros(classes, features))
        self.scale = nn.Parameter(torch.zeros(1)) if scale is None else scale

    def forward(self, x: Tensor) -> Tensor:
        """[n d] -> [n k]."""
        return self.scale * F.linear(unit(x), unit(self.weight))


class Identity(nn.Module):
    """y = the first k features."""

    def __init__(self, features: int, classes: int, bias: bool) -> None:
        super().__init__()
        del features
        self.classes = classes
        self.bias = nn.Parameter(torch.zeros(classes)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[n d] -> [n k]."""
        y = x[:, : self.classes]
        return y if self.bias is None else y + self.bias


HEADS: dict[str, Callable[..., nn.Module]] = {
    "learned": nn.Linear,
    "orthogonal": Orthogonal,
    "hadamard": Hadamard,
    "hadamard_printed": functools.partial(Hadamard, normalise=False),
    "identity": Identity,
    "etf_dr": functools.partial(Orthogonal, normalise=True),
    "reponet_simplex": Simplex,
    "normface": Cosine,
    "cosface": functools.partial(Cosine, scale=64.0),
    "arcface": functools.partial(Cosine, scale=64.0),
}
"""Arguments: features, classes, bias."""


class FixedConv(nn.Module):
    """1x1 convolution with loaded weights that are never trained."""

    weight: Tensor

    def __init__(self, features: int, maps: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(maps, features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[n d h w] -> [n k h w]."""
        return F.conv2d(x, self.weight)


def fit_channels(x: Tensor, channels: int) -> Tensor:
    """Zero-pad or centre-crop the channels, half on each side; an odd difference goes last."""
    missing = channels - x.shape[1]
    if missing < 0:
        return x[:, -missing // 2 : -missing // 2 + channels]
    return F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))


class Net(nn.Module):
    """A network of this file: `feature_map`, average pool, and the head that `build` attaches under `head_name`."""

    head_name: str

    def feature_map(self, x: Tensor) -> Tensor:
        """Return the last map."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images [n c h w] -> logits [n k]."""
        return self.get_submodule(self.head_name)(self.feature_map(x).mean((2, 3)))


class CifarBlock(nn.Module):
    """BasicBlock; `rebuilt`: the thesis's ClsfBlock, which ends in `planes` maps without a ReLU."""

    def __init__(self, width: int, planes: int, stride: int, option: str, rebuilt: bool = False) -> None:
        super().__init__()
        self.planes, self.stride, self.option, self.rebuilt = planes, stride, option, rebuilt
        middle = width if rebuilt else planes
        self.conv1 = nn.Conv2d(width, middle, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        changes = rebuilt or width != planes
        if option == "B" and changes:
            self.shortcut = nn.Sequential(nn.Conv2d(width, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
        elif option == "C":
            # The scale is the block's own; the multiplication is counted as shortcut[1].
            self.shortcut = nn.Sequential(FixedConv(width, planes), nn.Identity(), nn.BatchNorm2d(planes))
            self.scale = nn.Parameter(torch.zeros(()))
        elif option != "A" and changes:
            self.shortcut = nn.Sequential(FixedConv(width, planes), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n planes i j]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = y + self._skip(x)
        return y if self.rebuilt else F.relu(y)

    def _skip(self, x: Tensor) -> Tensor:
        if self.option == "B":
            return self.shortcut(x) if hasattr(self, "shortcut") else x
        x = x[:, :, :: self.stride, :: self.stride]
        if self.option == "A":
            return fit_channels(x, self.planes)
        if self.option == "C":
            matrix_conv, _, norm = self.shortcut
            return norm(-self.scale * matrix_conv(x))
        return self.shortcut(x)


class CifarResNet(Net):
    """ResNet-(6n + 2), three stages of 16, 32, 64 channels, up to the last map."""

    def __init__(self, channels: int, depth: int, shortcut: str, maps: int | None, maps_shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        count, width = (depth - 2) // 6, 16
        for stage, planes in enumerate((16, 32, 64), start=1):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                if maps is not None and (stage, index) == (3, count - 1):
                    blocks.append(CifarBlock(width, maps, stride, maps_shortcut, rebuilt=True))
                else:
                    blocks.append(CifarBlock(width, planes, stride, shortcut))
                width = planes
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))

    def feature_map(self, x: Tensor) -> Tensor:
        """Return the last map."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return x


class DenseLayer(nn.Module):
    """bn-relu-conv1-bn-relu-conv3, appended to the input."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n c + growth h w]."""
        y = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(y)))], 1)


class Transition(nn.Module):
    """bn-relu-conv1 to half the channels, 2x2 average pool."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n c h w] -> [n c/2 h/2 w/2]."""
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class CifarDenseNet(Net):
    """DenseNet-BC in three blocks, up to the last map."""

    def __init__(self, channels: int, depth: int, growth: int) -> None:
        super().__init__()
        width = 2 * growth
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        for stage in (1, 2, 3):
            layers = [DenseLayer(width + index * growth, growth) for index in range((depth - 4) // 6)]
            width += len(layers) * growth
            self.add_module(f"dense{stage}", nn.Sequential(*layers))
            if stage < 3:
                self.add_module(f"trans{stage}", Transition(width))
                width //= 2
        self.bn = nn.BatchNorm2d(width)

    def feature_map(self, x: Tensor) -> Tensor:
        """Return the last map."""
        x = self.conv1(x)
        for stage in (1, 2, 3):
            x = self.get_submodule(f"dense{stage}")(x)
            x = self.get_submodule(f"trans{stage}")(x) if stage < 3 else x
        return F.relu(self.bn(x))


class LeNet(Net):
    """Two conv-activation-pool stages and linear hidden layers for 28x28 images, under the reference's names."""

    def __init__(
        self,
        channels: int,
        names: tuple[str, ...],
        convs: tuple[int, int],
        hidden: tuple[int, ...],
        padding: int,
        act: Callable[[Tensor], Tensor],
        pool: Callable[[Tensor, int], Tensor],
        shrink: tuple[int, int],
        maps: int | None,
    ) -> None:
        super().__init__()
        self.names, self.act, self.pool, self.shrink, self.rebuilt = names, act, pool, shrink, maps is not None
        widths = (*hidden[:-1], maps or hidden[-1])
        attach(self, names[0], nn.Conv2d(channels, convs[0], 5, padding=padding))
        attach(self, names[1], nn.Conv2d(convs[0], convs[1], 5))
        side = ((24 + 2 * padding) // shrink[0] - 4) // shrink[1]
        entering = convs[1] * side**2
        for name, width in zip(names[2:], widths, strict=True):
            attach(self, name, nn.Linear(entering, width))
            entering = width

    def feature_map(self, x: Tensor) -> Tensor:
        """Return the last hidden layer as a map of one position."""
        for name, window in zip(self.names[:2], self.shrink, strict=True):
            x = self.pool(self.act(self.get_submodule(name)(x)), window)
        x = x.flatten(1)
        for name in self.names[2:]:
            x = self.get_submodule(name)(x)
            x = x if self.rebuilt and name == self.names[-1] else self.act(x)
        return x[:, :, None, None]


class RebuiltBasic(nn.Module):
    """Last block of ResNet-18 and 34 with `maps` channels: conv2 has a bias and no norm, the ReLU stays."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(512, 512, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(512)
        self.conv2 = nn.Conv2d(512, maps, 3, padding=1)
        self.maps, self.downsample = maps, None
        if maps < 512:
            self.downsample = nn.Sequential(nn.Conv2d(512, maps, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[n 512 h w] -> [n maps h w]."""
        y = self.conv2(F.relu(self.bn1(self.conv1(x))))
        return F.relu(y + (fit_channels(x, self.maps) if self.downsample is None else self.downsample(x)))


class RebuiltBottleneck(nn.Module):
    """Last block of ResNet-50 and deeper with `maps` channels: conv3 has a bias, no norm and no ReLU after it."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2048, 512, 1, bias=False), nn.BatchNorm2d(512)
        self.conv2, self.bn2 = nn.Conv2d(512, 512, 3, padding=1, bias=False), nn.BatchNorm2d(512)
        self.conv3, self.maps = nn.Conv2d(512, maps, 1), maps

    def forward(self, x: Tensor) -> Tensor:
        """[n 2048 h w] -> [n maps h w]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return self.conv3(F.relu(self.bn2(self.conv2(y)))) + fit_channels(x, self.maps)


LENETS: dict[str, Callable[..., LeNet]] = {
    "lenet5": functools.partial(
        LeNet,
        names=("features.0", "features.3", "classifier.0", "classifier.2"),
        convs=(6, 16),
        hidden=(120, 84),
        padding=0,
        act=F.relu,
        pool=F.max_pool2d,
        shrink=(2, 2),
    ),
    "lenet5_sigmoid": functools.partial(
        LeNet,
        names=("conv1", "conv2", "fc1", "fc2"),
        convs=(6, 16),
        hidden=(120, 84),
        padding=2,
        act=torch.sigmoid,
        pool=F.avg_pool2d,
        shrink=(2, 2),
    ),
    "lenet_like": functools.partial(
        LeNet,
        names=("conv1", "conv2", "fc1"),
        convs=(32, 64),
        hidden=(200,),
        padding=0,
        act=F.relu,
        pool=F.max_pool2d,
        shrink=(3, 2),
    ),
}


def build(config: ModelConfig, model: Classifier, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return `model`, jaxclf's network of that config, as a module from [n c h w] to logits, to be loaded into.

    Only dropout draws: from torch's own generator, so there the two are alike in distribution alone.

    Raises:
        UsageError: for a backbone, a pool, a head or images that the twin does not have.
    """
    faults = [
        f"model.{name} {getattr(config, name)!r}" for name in ("pool", "relu_before_pool") if _changed(config, name)
    ]
    faults += [] if config.head in HEADS else [f"model.head {config.head!r} (it has {', '.join(HEADS)})"]
    if faults:
        raise UsageError(f"the PyTorch twin does not have {', '.join(faults)}")
    net = _body(config.backbone, model, image_shape)
    head = HEADS[config.head](model.backbone.features, model.head.num_classes, bias=model.head.bias)
    if model.dropout:
        rate = model.dropout  # before the head, whatever the network: a module of its own would change the keys
        head.register_forward_pre_hook(lambda head, given: (F.dropout(given[0], rate, head.training),))
    name = model.backbone.head_names[0]
    if isinstance(net, Net):
        net.head_name = name
    elif name == "classifier.1":
        net.classifier = nn.Sequential(nn.Identity(), head)  # without torchvision's own dropout
    attach(net, name, head)
    return net


def _changed(config: ModelConfig, name: str) -> bool:
    return getattr(config, name) != getattr(ModelConfig(), name)


def _body(name: str, model: Classifier, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return the network before its head; torchvision's come with theirs."""
    body: Any = model.backbone
    height, width, channels = image_shape
    if isinstance(body, resnet_cifar.CifarResNet):
        return CifarResNet(channels, body.depth, body.shortcut, body.maps, body.maps_shortcut)
    if isinstance(body, densenet_cifar.CifarDenseNet):
        return CifarDenseNet(channels, body.depth, body.growth)
    if name in LENETS:
        if (height, width) != (28, 28):
            raise UsageError(f"the PyTorch twin of {name} takes images of 28x28; got {height}x{width}")
        return LENETS[name](channels, maps=body.maps)
    if not re.fullmatch(TORCHVISION, name):
        raise UsageError(f"the PyTorch twin does not have the backbone {name}")
    if channels != 3:
        raise UsageError(f"torchvision's {name} takes images of 3 channels; got {channels}")
    net = _torchvision(name)
    if getattr(body, "maps", None) is not None:
        _rebuild(name, net, body.maps)
    return net


def _torchvision(name: str) -> Any:
    try:
        models = importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:  # RuntimeError: its operators are not those of this build of torch
        raise UsageError(f"the twin of {name} is torchvision's, which cannot be imported: {error}") from error
    return models.get_model(name, weights=None)


def _rebuild(name: str, net: Any, maps: int) -> None:
    """End a network of torchvision's in one map a class (thesis.md, section 2)."""
    if name in ("resnet18", "resnet34"):
        net.layer4[-1] = RebuiltBasic(maps)
    elif name.startswith("resnet"):
        net.layer4[-1] = RebuiltBottleneck(maps)
    elif name == "mobilenet_v2":
        net.features[18] = nn.Sequential(nn.Conv2d(320, maps, 1))
    else:
        net.conv5 = nn.Sequential(nn.Conv2d(net.conv5[0].in_channels, maps, 1))


def attach(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a dotted name, in the place of what is there."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if not hasattr(net, parent):
            net.add_module(parent, nn.Module())
        net = net.get_submodule(parent)
    net.add_module(leaf, module)
