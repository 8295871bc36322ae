"""Cut tests/golden/reference.json out of the project's reference files (models.json and logits.json).

Run once by a developer who has them: python tests/golden/make.py DIRECTORY. Names after the reference's own.
"""

import json
import pathlib
import sys

NAMES = ("lenet", "resnet20_", "resnet32_cifar", "resnet44_", "resnet56_", "resnet110_", "rn32_cf100", "densenetbc")
FIELDS = ("source", "note", "input", "classes", "params_trainable", "params_total", "macs", "n_c", "state_dict")

source = pathlib.Path(sys.argv[1])
models = json.loads((source / "models.json").read_text())["models"]
logits = json.loads((source / "logits.json").read_text())
chosen = {
    name: {field: record[field] for field in FIELDS} | {"logits": logits.get(name)}
    for name, record in models.items()
    if name.startswith(NAMES) and not name.endswith(("bearpaw", "hoya"))
}
target = pathlib.Path(__file__).with_name("reference.json")
target.write_text(json.dumps(chosen, separators=(",", ":")) + "\n")
print(f"{target}: {len(chosen)} networks, {target.stat().st_size:,} bytes")
