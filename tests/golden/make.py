"""Cut the .json files beside this one out of the project's reference files.

Those are models.json, logits.json and, for two networks that neither has, efficientnet_lite12.json.

Run by a developer who has them, from the repository's root: python -m tests.golden.make DIRECTORY. Names after the
reference's own; the families of zoo/ are those of tests/models/zoo.py.
"""

import json
import sys
from pathlib import Path

from tests.models.zoo import ZOO

NAMES = ("lenet", "resnet20_", "resnet32_cifar", "resnet44_", "resnet56_", "resnet110_", "rn32_cf100", "densenetbc")
IMAGENET = (
    *(f"resnet{depth}_tv" for depth in (18, 34, 50, 101, 152)),
    *(f"densenet{depth}_tv" for depth in (121, 161, 169, 201)),
    *(f"vgg{depth}{norm}_tv" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"shufflenet_v2_{size}_tv" for size in ("x0_5", "x1_0", "x1_5", "x2_0")),
    "mobilenet_v2_tv",
    "efficientnet_lite0_mlill",
)
THESIS_RESNET18 = (
    "th_rn18_orthogonal_fc_1000",
    "th_rn18_512_orthogonal_fc",
    "th_rn18_256_orthogonal_fc",
    "th_rn18_512_hadamard_scratch",
    "th_rn18_512_scratch",
    "th_rn18_512_id_scratch",
    "th_rn18_3x3clsf",
    "th_rn18_l4_1a_nc_1k",
    "th_rn18_l4_1a_soft_attention_pool_32",
)
FIELDS = (
    *("source", "note", "input", "classes", "params_trainable", "params_total", "macs", "macs_ptflops_2020", "n_c"),
    *("last_feature_map", "state_dict"),
)


def main(source: Path) -> None:
    """Write the records of the networks that are built here, with their logits where there are any."""
    models = json.loads((source / "models.json").read_text())["models"]
    logits = json.loads((source / "logits.json").read_text())
    for name, record in json.loads((source / "efficientnet_lite12.json").read_text()).items():
        facts = {"input": [3, record["side"], record["side"]], "classes": 1000, "params_trainable": record["params"]}
        models[name] = {"source": "PyPI " + record["file"], "state_dict": record["state_dict"], **facts}
    small = [name for name in models if name.startswith(NAMES) and not name.endswith(("bearpaw", "hoya"))]
    files = {"reference.json": (*small, *IMAGENET), "thesis_resnet18.json": THESIS_RESNET18}
    files |= {f"zoo/{family}.json": tuple(rows) for family, rows in ZOO.items()}
    for file, names in files.items():
        chosen = {
            name: {field: models[name].get(field) for field in FIELDS} | {"logits": logits.get(name)} for name in names
        }
        for name in (name for name in chosen if name.endswith("_supernet")):
            start = name.replace("supernet", "subnet")
            chosen[name]["settings"] = [answer for other, answer in logits.items() if other.startswith(start)]
        target = Path(__file__).parent / file
        target.write_text(json.dumps(chosen, separators=(",", ":")) + "\n")
        print(f"{target}: {len(chosen)} networks, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
