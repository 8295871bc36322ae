"""Where a run's arrays lie: whole on every device, or split over them by the batch's rows.

A mesh of one axis over all devices of the run, those of one process side by side, so that the rows which a process
reads are the rows which its devices compute. A batch that the devices do not divide evenly, as the last one of an epoch
may be, lies whole on all of them.
"""

import dataclasses
import functools
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclf.errors import UsageError

Tree = Any
AXIS = "data"
"""Name of the mesh's axis, and of pmap's."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """How a compiled step shares its batch among devices. This one is for a single device, which shares nothing."""

    def split(self, rows: jax.Array) -> jax.Array:
        """Split an array over the devices by its first axis, else by the second, or not at all where neither fits."""
        return rows

    def whole(self, tree: Tree) -> Tree:
        """Keep arrays whole on every device."""
        return tree

    def own(self, key: jax.Array) -> jax.Array:
        """Return a replica's own key: the first one's is that of a run on one device."""
        return key

    def mean(self, tree: Tree) -> Tree:
        """Average arrays over the replicas."""
        return tree

    def total(self, tree: Tree) -> Tree:
        """Add arrays up over the replicas."""
        return tree

    def statistics(self, tree: Tree) -> Tree:
        """Return the running statistics of BatchNorm that a training step keeps of the replicas' own."""
        return self.mean(tree)


ALONE = Spread()


@dataclasses.dataclass(frozen=True)
class MeshSpread(Spread):
    """A step compiled by jit over a mesh: one batch, whose rows lie on the devices."""

    mesh: Mesh

    def split(self, rows: jax.Array) -> jax.Array:
        """See `Spread`."""
        fits = (axis for axis in range(min(rows.ndim, 2)) if rows.shape[axis] % self.mesh.size == 0)
        axis = next(fits, None)
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
        return jax.lax.with_sharding_constraint(rows, NamedSharding(self.mesh, spec))

    def whole(self, tree: Tree) -> Tree:
        """See `Spread`."""
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec()))


@dataclasses.dataclass(frozen=True)
class ReplicaSpread(Spread):
    """A step compiled by pmap: each device takes its own part of the batch, as in torch's DDP."""

    mesh: Mesh
    kept: Literal["average", "first"] = "average"
    """RunConfig.replica_statistics."""

    def own(self, key: jax.Array) -> jax.Array:
        """See `Spread`."""
        number = jax.lax.axis_index(AXIS)
        return jnp.where(number == 0, key, jax.random.fold_in(key, number))

    def mean(self, tree: Tree) -> Tree:
        """See `Spread`."""
        return jax.lax.pmean(tree, AXIS)

    def total(self, tree: Tree) -> Tree:
        """See `Spread`."""
        return jax.lax.psum(tree, AXIS)

    def statistics(self, tree: Tree) -> Tree:
        """Return the average, or the statistics of the first replica.

        Running statistics are linear in a batch's and training does not read them, so their average after every step
        is the average of what each replica would have gathered by itself.
        """
        if self.kept == "average":
            return self.mean(tree)
        first = jax.lax.axis_index(AXIS) == 0
        return self.total(jax.tree.map(lambda leaf: jnp.where(first, leaf, 0), tree))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices of a run and this process's place among them."""

    mesh: Mesh
    """All devices of the run, over the axis "data"."""
    rank: int = 0
    """This process's place among those that share the run."""
    hosts: int = 1
    """Processes that share the run."""
    replicas: bool = False
    """Whether training is compiled by pmap, whose arrays lie on the devices of one process."""

    @property
    def devices(self) -> int:
        """Number of devices of the run, over all processes."""
        return self.mesh.size

    def spread(self, *, training: bool = False, kept: Literal["average", "first"] = "average") -> Spread:
        """Return how compiled steps share a batch; `kept` is RunConfig.replica_statistics, for training by pmap."""
        if self.replicas and training:
            return ReplicaSpread(self.mesh, kept)
        return MeshSpread(self.mesh) if self.devices > 1 else ALONE

    @functools.cached_property
    def training_mesh(self) -> Mesh:
        """The mesh that training's arrays lie on."""
        if not (self.replicas and self.hosts > 1):
            return self.mesh
        own = [device for device in self.mesh.devices.flat if device.process_index == self.rank]
        return Mesh(np.array(own), (AXIS,))

    @property
    def ahead(self) -> int:
        """Programs that the host may give to the devices before they have finished the last one.

        A few keep accelerators busy. CPU devices of several processes get one at a time: XLA's threads wait inside
        collectives for other processes, and the rest of them may be too few for a second program to go on. (Four
        devices each in two processes on two cores: of 11 runs of 50 steps without waiting, 9 hung.)
        """
        return 0 if self.hosts > 1 and self.mesh.devices.flat[0].platform == "cpu" else 2

    def splits(self, count: int) -> bool:
        """Tell whether a batch of `count` rows is split over the devices; else it lies whole on each."""
        return count % self.devices == 0

    def whole(self, tree: Tree, *, training: bool = False) -> Tree:
        """Put arrays that every process holds whole on every device."""
        mesh = self.training_mesh if training else self.mesh
        return _place(mesh, PartitionSpec(), tree)

    def rows(self, tree: Tree, count: int, *, training: bool = False) -> Tree:
        """Put a batch of `count` rows on the devices, of which this process holds its own part in each array.

        Where the devices do not divide the batch, every process holds all of it, as `whole`. What pmap trains on has an
        axis more: [l b/r ...] for l devices of this process and r in all.
        """
        if not self.splits(count):
            return self.whole(tree, training=training)
        mesh = self.training_mesh if training else self.mesh
        if self.replicas and training:
            own = self.devices // self.hosts
            tree = jax.tree.map(lambda leaf: leaf.reshape(own, -1, *leaf.shape[1:]), tree)
        return _place(mesh, PartitionSpec(AXIS), tree)


def _place(mesh: Mesh, spec: PartitionSpec, tree: Tree) -> Tree:
    if mesh.size == 1:
        return jax.device_put(tree, mesh.devices.flat[0])
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def one_device() -> Layout:
    """Return the layout of a run on the default device of this process alone."""
    return Layout(Mesh(np.array(jax.local_devices()[:1]), (AXIS,)))


def over_devices(devices: int | None = None, *, replicas: bool = False) -> Layout:
    """Return the layout over `devices` of each process (None: all), and over all processes that JAX knows of.

    Raises:
        UsageError: for more devices than a process has, and where processes have different numbers of them.
    """
    by_process: dict[int, list[Any]] = {}
    for device in sorted(jax.devices(), key=lambda device: (device.process_index, device.id)):
        by_process.setdefault(device.process_index, []).append(device)
    least, most = (bound(map(len, by_process.values())) for bound in (min, max))
    if devices is not None and not 1 <= devices <= least:
        raise UsageError(f"--devices is {devices} but must be from 1 to {least}, what each process has here")
    if devices is None and least != most:
        raise UsageError(f"processes have from {least} to {most} devices; take as many of each with --devices {least}")
    chosen = [device for own in by_process.values() for device in own[:devices]]
    return Layout(Mesh(np.array(chosen), (AXIS,)), jax.process_index(), len(by_process), replicas)


def lengthen_waits() -> None:
    """Let virtual CPU devices wait ten minutes for one another; call it before JAX starts its backend.

    XLA ends a process after 40 s, which a busy machine exceeds. A limit that is set in XLA_FLAGS stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_collective_call_terminate_timeout" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_collective_call_terminate_timeout_seconds=600".strip()


def check_batch(layout: Layout, name: str, size: int) -> None:
    """Refuse a batch size that the devices do not divide; the error names the nearest that they do."""
    if not layout.splits(size):
        below, of = size - size % layout.devices, f"{layout.devices} devices"
        near = [str(one) for one in (below, below + layout.devices) if one]
        raise UsageError(f"{name} is {size}, which {of} do not divide; the nearest that they do: {' and '.join(near)}")
