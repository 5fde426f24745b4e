"""A model of a disk that loses power: what a run asked of it is recorded, and of any moment crash states are made.

What was synced is there. Of the rest anything may be: bytes of a file that was not synced are missing, half there or
zeros; of the changes to a folder's names that were not synced, any may have happened or not (ALICE's and SQLite's method).
A rename is one step.
"""

import os
import re
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from mmdata.errors import RunError
from mmdata.storage import Disk, LocalStore, opening

State = dict[str, bytes | str]  # by name the bytes of files, and the targets of symlinks
LOST, KEPT, SOME = "lost", "kept", "some"
_FOLDER = "/"


@dataclass(frozen=True)
class Op:
    """What was asked of the disk; paths are relative to the run folder."""

    kind: str
    path: str
    other: str = ""
    data: bytes = b""


class Recorder(Disk):
    """The disk as it is, and a list of what was asked of it.

    After `names` names were made it takes no more, so that all that the run does from then on leaves no trace: it was killed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: int | None = None
        self.ops: list[Op] = []
        self._files: dict[int, Path] = {}
        self._lock = threading.RLock()  # a lease beats in a thread of its own

    def open(self, path: Path) -> int:
        """Make a file, and the folders above it."""
        with self._lock:
            for folder in reversed(path.relative_to(self.root).parents[:-1]):
                if not (self.root / folder).exists():
                    self._note("folder", self.root / folder)
            self._note("open", path)
            fd = super().open(path)
            self._files[fd] = path
            return fd

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write."""
        with self._lock:
            self._note("write", self._files[fd], data=bytes(data))
            return super().write(fd, data)

    def sync(self, fd: int) -> None:
        """Sync a file."""
        with self._lock:
            self._note("sync", self._files[fd])
            super().sync(fd)

    def link(self, path: Path, final: Path) -> None:
        """Give a file its name."""
        with self._lock:
            if not final.exists():
                self._note("link", path, final)
            super().link(path, final)

    def sync_folder(self, folder: Path) -> None:
        """Sync a folder."""
        with self._lock:
            self._note("sync folder", folder)
            super().sync_folder(folder)

    def replace(self, path: Path, final: Path) -> None:
        """Rename a file."""
        with self._lock:
            self._note("replace", path, final)
            super().replace(path, final)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        with self._lock:
            self._note("unlink", path)
            super().unlink(path)

    def remove(self, path: Path) -> None:
        """Note the removal of a file that is made by no call of a disk, and make it."""
        self._note("unlink", path)
        path.unlink(missing_ok=True)

    def _note(self, kind: str, path: Path, other: Path | None = None, data: bytes = b"") -> None:
        if self.names is not None and sum(op.kind == "link" for op in self.ops) >= self.names:
            raise RunError("killed by a test")
        self.ops.append(Op(kind, self._name(path), "" if other is None else self._name(other), data))

    def _name(self, path: Path) -> str:
        return "" if path == self.root else path.relative_to(self.root).as_posix()


class _RecordedStore(LocalStore):
    """A folder whose changes are all recorded, deletion included."""

    def delete(self, name: str) -> None:
        """Remove a file."""
        assert isinstance(self.disk, Recorder)
        self.disk.remove(self.path(name))


@contextmanager
def recorded(recorder: Recorder) -> Iterator[None]:
    """Let every store that is opened write through a recorder: runs open theirs by url, in more places than one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "LocalStore", lambda url: _RecordedStore(url, recorder))
        yield


@dataclass(eq=False)
class _File:
    """A file's bytes, and how many of them are safe."""

    data: bytes = b""
    safe: int = 0


Entry = _File | str | None  # a file, a symlink's target, a folder, or nothing


@dataclass
class Model:
    """A run folder at a moment: by folder, the names that are safe, and the changes that may have happened or not.

    strict  a new folder is safe only once the folder above it was synced, as POSIX has it; ext4, xfs and btrfs write the
            folders above a file down with it
    """

    strict: bool = False
    safe: dict[str, dict[str, Entry]] = field(default_factory=lambda: defaultdict(dict))
    loose: dict[str, list[dict[str, Entry]]] = field(default_factory=lambda: defaultdict(list))
    now: dict[str, _File] = field(default_factory=dict)

    @classmethod
    def after(cls, ops: Iterable[Op], *, strict: bool = False) -> "Model":
        """Return the folder after these calls."""
        model = cls(strict)
        for op in ops:
            model.apply(op)
        return model

    def apply(self, op: Op) -> None:
        """Let a call have been made."""
        if op.kind == "open":
            self.now[op.path] = _File()
            self._change({op.path: self.now[op.path]})
        elif op.kind == "write":
            self.now[op.path].data += op.data
        elif op.kind == "sync":
            self.now[op.path].safe = len(self.now[op.path].data)
        elif op.kind in ("link", "replace"):
            file = self.now[op.other] = self.now[op.path]
            self._change({op.other: file} if op.kind == "link" else {op.path: None, op.other: file})
        elif op.kind == "unlink":
            self._change({op.path: None})
        elif op.kind == "symlink":
            self._change({op.path: op.other})
        else:
            self._apply_folder(op)

    def _apply_folder(self, op: Op) -> None:
        if op.kind == "sync folder":
            _settle(self.safe[op.path], self.loose.pop(op.path, []))
        elif self.strict:
            self._change({op.path: _FOLDER})
        else:
            _settle(self.safe[_split(op.path)[0]], [{_split(op.path)[1]: _FOLDER}])

    def crash(self, policy: str, random: Random) -> State:
        """Return a state that the disk may be in."""
        likely = random.choice((0.2, 0.5, 0.8))
        names: dict[str, dict[str, Entry]] = defaultdict(dict, {folder: dict(safe) for folder, safe in self.safe.items()})
        for folder, changes in self.loose.items():
            _settle(names[folder], [item for item in changes if policy == KEPT or (policy == SOME and random.random() < likely)])
        state: State = {}
        folders = [""]
        for folder in folders:
            for name, entry in sorted(names[folder].items()):
                path = f"{folder}/{name}".lstrip("/")
                if entry == _FOLDER:
                    folders.append(path)
                elif entry is not None:
                    state[path] = entry if isinstance(entry, str) else _content(entry, policy, random)
        return state

    def _change(self, entries: dict[str, Entry]) -> None:
        (folder,) = {_split(path)[0] for path in entries}  # a rename stays in its folder
        self.loose[folder].append({_split(path)[1]: entry for path, entry in entries.items()})


def put_back(state: State, root: Path) -> None:
    """Make a state a folder. The process that wrote it is gone: its temporary files bear another start than ours."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, content in state.items():
        path = root / re.sub(rf"(\.tmp-[0-9a-f]+-{os.getpid()}-)\d+", r"\g<1>1", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)


def _settle(names: dict[str, Entry], changes: list[dict[str, Entry]]) -> None:
    for change in changes:
        names.update(change)


def _content(file: _File, policy: str, random: Random) -> bytes:
    tail = file.data[file.safe :]
    left = {KEPT: [tail], LOST: [b""]}.get(policy, [b"", tail[: len(tail) // 2], bytes(len(tail)), tail])
    return file.data[: file.safe] + random.choice(left)


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name
