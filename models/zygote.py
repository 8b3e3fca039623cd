"""Starts stage processes in milliseconds: a process that has imported the heavy libraries and forks one child a request.

It reads paths of spec files on its standard input, one a line, and answers in files beside them:

    started.json   {"pid"}
    exit.json      {"status"}: exit code, or minus the signal; it appears before the process id can be used again

End of input means that the flow is gone: the children get SIGTERM, and SIGKILL if they are still there after a grace time.

It computes nothing and holds no thread but its own: a forked child would not have the others, and would hang on their locks. Should a
library have started one after all, children are started afresh instead of forked.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from models import worker
from models.marked import MARK, kill_marked
from models.run import write_atomic

# What stages import. pyarrow and datasets are not among them: they start threads.
HEAVY = ("torch", "transformers", "transformers.models.llama.modeling_llama", "tokenizers", "safetensors.torch")
# For saving, after SIGTERM. Prefect kills a flow 30 s after it was asked to stop, and the flow itself has to say how it ended.
GRACE_S = float(os.environ.get("POSTTRAIN_GRACE_S", "20"))


class Zygote:
    """The loop: requests in, children out."""

    def __init__(self) -> None:
        self.children: dict[int, Path] = {}
        self.spawned: list[subprocess.Popen[bytes]] = []  # kept, since the module would reap one that nobody holds
        self.wake_read, self.wake_write = os.pipe()
        for descriptor in (self.wake_read, self.wake_write):
            os.set_blocking(descriptor, False)

    def serve(self) -> None:
        """Answer requests until the input ends, then end the children."""
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        pending = b""
        while True:
            ready, _, _ = select.select([0, self.wake_read], [], [])
            if self.wake_read in ready:
                os.read(self.wake_read, 4096)
                self.reap()
            if 0 in ready:
                chunk = os.read(0, 65536)
                if not chunk:
                    break
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    self.start(Path(os.fsdecode(line)))
        self.end_children()

    def start(self, spec: Path) -> None:
        """Start the process of a spec."""
        pid = self._fork(spec) if len(os.listdir("/proc/self/task")) == 1 else self._spawn(spec)
        self.children[pid] = spec.parent
        write_atomic(spec.with_name("started.json"), json.dumps({"pid": pid}))

    def _fork(self, spec: Path) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, signal.SIG_DFL)
            os.close(self.wake_read)
            os.close(self.wake_write)
            worker.run_and_exit(spec, parent)
        return pid

    def _spawn(self, spec: Path) -> int:
        command = [sys.executable, "-m", "models.worker", str(spec), str(os.getpid())]
        self.spawned.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))
        return self.spawned[-1].pid

    def reap(self) -> None:
        """Note the children that ended: kill what they left running, say how they ended, and only then let their process id go."""
        for pid in list(self.children):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                continue
            signal_group(pid, signal.SIGKILL)
            status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            folder = self.children.pop(pid)
            if folder.exists():
                write_atomic(folder / "exit.json", json.dumps({"status": status}))
            os.waitpid(pid, 0)

    def end_children(self) -> None:
        """SIGTERM, wait, SIGKILL; at last also for what they started in sessions of its own, such as the ranks of torchrun."""
        marks = [mark for folder in self.children.values() if (mark := _mark_of(folder))]
        for pid in self.children:
            signal_group(pid, signal.SIGTERM)
        for mark in marks:
            kill_marked(mark, signal.SIGTERM)
        end = time.monotonic() + GRACE_S
        while self.children and time.monotonic() < end:
            time.sleep(0.05)
            self.reap()
        for pid in self.children:
            signal_group(pid, signal.SIGKILL)
        for mark in marks:
            kill_marked(mark)


def _mark_of(folder: Path) -> str:
    """The mark in a spec; nothing if its flow has removed it already."""
    try:
        return json.loads((folder / "spec.json").read_text(encoding="utf-8"))["environment"].get(MARK, "")
    except FileNotFoundError:
        return ""


def signal_group(pid: int, signum: int) -> None:
    """Send a signal to the process group of a child; to the child alone while it has not made its group yet."""
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        os.kill(pid, signum)


def main() -> None:
    """Import, then serve."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # Ctrl-C is the flow's business, and its end is ours
    for module in HEAVY:
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"{module}: {error}", file=sys.stderr)  # the stage that needs it says so again
    gc.collect()
    gc.freeze()  # the collector would write to every shared page
    Zygote().serve()


if __name__ == "__main__":
    main()
