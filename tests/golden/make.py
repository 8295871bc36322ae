"""Cut tests/golden/reference.json out of the project's reference files (models.json and logits.json).

Run once by a developer who has them: python tests/golden/make.py DIRECTORY. Names after the reference's own.
"""

import json
import sys
from pathlib import Path

NAMES = ("lenet", "resnet20_", "resnet32_cifar", "resnet44_", "resnet56_", "resnet110_", "rn32_cf100", "densenetbc")
FIELDS = ("source", "note", "input", "classes", "params_trainable", "params_total", "macs", "n_c", "state_dict")


def main(source: Path) -> None:
    """Write the records of the networks that are built here, with their logits where there are any."""
    models = json.loads((source / "models.json").read_text())["models"]
    logits = json.loads((source / "logits.json").read_text())
    chosen = {
        name: {field: record[field] for field in FIELDS} | {"logits": logits.get(name)}
        for name, record in models.items()
        if name.startswith(NAMES) and not name.endswith(("bearpaw", "hoya"))
    }
    target = Path(__file__).with_name("reference.json")
    target.write_text(json.dumps(chosen, separators=(",", ":")) + "\n")
    print(f"{target}: {len(chosen)} networks, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
