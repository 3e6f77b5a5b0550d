"""What a run keeps on disk: append-only rows, manifests, the lock of a run folder, and the rows runs share.

Light to import: no torch, no numpy.
"""

from __future__ import annotations

from harness.store.files import read_json, write_atomic, write_json
from harness.store.fingerprints import fingerprint
from harness.store.lock import RunLock
from harness.store.manifests import environment, git_state, read_manifest, write_manifest
from harness.store.row_file import RowFile
from harness.store.shared import SharedFolder, SharedRows
from sami_train.files import cache_folder

__all__ = [
    "RowFile",
    "RunLock",
    "SharedFolder",
    "SharedRows",
    "cache_folder",
    "environment",
    "fingerprint",
    "git_state",
    "read_json",
    "read_manifest",
    "write_atomic",
    "write_json",
    "write_manifest",
]
