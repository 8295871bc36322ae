"""Write counting_tools.json: what PyTorch's counting tools print for torchvision's networks, one 224x224 image.

pip install --no-deps --target DIR thop==0.1.1.post2209072238 ptflops==0.6.2 torchsummary==1.5.1
PYTHONPATH=DIR python -m tests.golden.counting_tools    # PyTorch 2.13.0 and torchvision 0.28.0; 2 minutes

torchsummary ends with an AttributeError at DenseNet's lists: its sizes are null there. Inception v3 (299x299 images) is
left out of torchsummary and of ptflops: it calls its inner pools as functions, which no rule of ours follows.
"""

import contextlib
import importlib
import importlib.metadata
import io
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.input_pipeline import import_torchvision

NAMES = (
    *("alexnet", "vgg16", "vgg16_bn", "resnet18", "resnet34", "resnet50", "squeezenet1_1", "googlenet"),
    *("densenet121", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "inception_v3"),
)
TOOLS = ("thop", "ptflops", "torchsummary", "torch", "torchvision")


def printed(name: str) -> dict[str, Any]:
    """Return a network's counts by the tools: totals, and torchsummary's input, outputs, parameters and total in MB."""
    torch, models = importlib.import_module("torch"), import_torchvision().models
    thop, ptflops, torchsummary = (importlib.import_module(tool) for tool in TOOLS[:3])
    counter = importlib.import_module("torch.utils.flop_counter")
    inception = name == "inception_v3"
    shape = (3, 299, 299) if inception else (3, 224, 224)

    def made() -> Any:
        options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return getattr(models, name)(weights=None, **options).eval()

    with torch.no_grad(), counter.FlopCounterMode(display=False) as flops:
        made()(torch.zeros(1, *shape))
    operations, parameters = thop.profile(made(), (torch.zeros(1, *shape),), verbose=False)
    found = {"parameters": int(parameters), "flops": flops.get_total_flops(), "thop": int(operations)}
    if inception:
        return found
    old, _ = ptflops.get_model_complexity_info(made(), shape, as_strings=False, print_per_layer_stat=False)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(AttributeError):
        torchsummary.summary(made(), shape, batch_size=1, device="cpu")
    return found | {"flops_2020": int(old), "megabytes": re.findall(r"\(MB\): ([\d.]+)", said.getvalue()) or None}


if __name__ == "__main__":
    versions = {tool: importlib.metadata.version(tool) for tool in TOOLS}
    networks = {name: printed(name) for name in NAMES}
    text = json.dumps({"versions": versions, "networks": networks}, indent=1) + "\n"
    (Path(__file__).parent / "counting_tools.json").write_text(text)
