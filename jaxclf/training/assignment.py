"""The rows of a fixed head, given to the classes by the features of the first epoch."""

import json

import jax
import numpy as np

from jaxclf.devices.cluster import gather
from jaxclf.models.moving import nearest_rows
from jaxclf.training.setup import Setup
from jaxclf.training.step import TrainState


def assigned(setup: Setup, state: TrainState, step: int) -> TrainState:
    """Return the state with the rows that its classes have from the second epoch on; at any other step, as it is.

    They follow from the state alone, so a run that goes on from the first epoch's end finds them again; the state there
    is evaluated and saved with the rows that were trained with. All processes take what the first one finds. Optimiser
    and bias go on as they are. Stacked runs each get their own rows.
    """
    head = setup.program.model.head
    if head.moves != "rows" or step != setup.program.timeline.steps_per_epoch:
        return state
    weight, sums = (
        np.asarray(*jax.tree.leaves(jax.device_get(part))) for part in (state.fixed["head"], state.class_sums)
    )
    runs = (-1, *sums.shape[-2:])
    found = [nearest_rows(head.sign * w, own) for w, own in zip(weight.reshape(runs), sums.reshape(runs), strict=True)]
    agreed = json.loads(gather(json.dumps(np.stack(found).tolist()))[0])
    rows = np.asarray(agreed, np.int32).reshape(sums.shape[:-1])
    return state.replace(head_state=setup.layout.whole({"head": {"rows": rows}}, training=True))
