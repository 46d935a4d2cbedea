"""What the soak puts into the daemons that it starts: Python loads this at its start where PYTHONPATH says so.

SIGUSR1 has a daemon say in its log where each of its tasks waits. BIRUDA_SOAK_PLANT names a fault of biruda's own, to
show that the checker sees it:

    drop-frame   the master takes one log frame in ten for written, and it never was
    ack-early    the master acknowledges what it has not committed yet
    skip-reap    a coordinator forgets every third worker in a chroot without taking away what it left
"""

import asyncio
import itertools
import os
import signal
import sys


def say_where_tasks_wait(*_):
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()


def drop_frame():
    from biruda.master.intake import Stream

    append, count = Stream.append, itertools.count(1)

    def planted(self, data):
        if not self.path.endswith(".log") or next(count) % 10 or not len(data):
            append(self, data)
            return
        self.open()
        self.digest.update(data)
        self.size += len(data)

    Stream.append = planted


def ack_early():
    from biruda.master.service import Master

    tell, carry_out = Master.tell, Master._carry_out

    def planted(self, event):
        future = tell(self, event)
        if not future.done():
            future.set_result(None)
        return future

    async def late(self, actions):
        if any(type(action).__name__ == "SaveQueued" for action in actions):
            await asyncio.sleep(1)
        await carry_out(self, actions)

    Master.tell, Master._carry_out = planted, late


def skip_reap():
    from biruda.coordinator.spawners.chroot import ChrootSpawner

    dispose, count = ChrootSpawner.dispose, itertools.count(1)

    async def planted(self, place):
        if next(count) % 3:
            await dispose(self, place)

    ChrootSpawner.dispose = planted


PLANTS = {
    ("master", "drop-frame"): drop_frame,
    ("master", "ack-early"): ack_early,
    ("coordinator", "skip-reap"): skip_reap,
}

for role in ("master", "coordinator"):
    if role in sys.orig_argv:
        signal.signal(signal.SIGUSR1, say_where_tasks_wait)
        PLANTS.get((role, os.environ.get("BIRUDA_SOAK_PLANT", "")), lambda: None)()
