"""One interface over a local directory and a bucket: read, write whole, list, claim, retire.

A local path is a `pathlib.Path`, and one of a bucket is etils' `epath.Path`, which has the same methods. What the two
do differently stands here: a bucket has neither directories nor renaming, an object is written whole or not at all and
about once a second at most, and every request costs a journey, so that a tree is listed by one of them.

fsspec and what stands on it are imported where a URL is given and nowhere else.
"""

from jaxclf.storage.claims import Claim, claim
from jaxclf.storage.copies import Outbox, fetched, written
from jaxclf.storage.files import (
    checksum_name,
    checksums,
    directories,
    files_below,
    least_seconds,
    names,
    read,
    remove,
    replace_file,
    retire,
    write_whole,
)
from jaxclf.storage.places import IMAGES, Location, absolute, location, require_local

__all__ = [
    "IMAGES",
    "Claim",
    "Location",
    "Outbox",
    "absolute",
    "checksum_name",
    "checksums",
    "claim",
    "directories",
    "fetched",
    "files_below",
    "least_seconds",
    "location",
    "names",
    "read",
    "remove",
    "replace_file",
    "require_local",
    "retire",
    "write_whole",
    "written",
]
