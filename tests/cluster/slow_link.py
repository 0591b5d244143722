"""A link between two network namespaces that is slow: a process that carries Ethernet frames from one to the other.

python slow_link.py PID_OF_HOST PID_OF_SWITCH PORT DELAY_S BYTES_PER_S    (0 bytes: as many as come)

It makes eth0 in the host's network, and PORT in the switch's, prints "up", and carries until it is killed.
"""

import collections
import ctypes
import fcntl
import os
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
TAP_WITHOUT_HEADER = 0x0002 | 0x1000  # IFF_TAP | IFF_NO_PI: whole frames, which the kernel has cut up and summed
FRAME_BYTES = 2048
CLONE_NEWNET = 0x40000000


def open_tap(pid: int, name: str) -> int:
    """Makes a network device in the network of a process; returns the file of its frames."""
    with open(f"/proc/{pid}/ns/net") as network:
        if ctypes.CDLL(None).setns(network.fileno(), CLONE_NEWNET):  # os.setns is there from Python 3.12 on
            raise OSError(f"the network of process {pid} cannot be entered")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), TAP_WITHOUT_HEADER))
    return device


def carry(devices: tuple[int, int], delay_s: float, bytes_per_s: float) -> None:
    """Carries frames both ways, each `delay_s` later, and none before those ahead of it are through."""
    others = dict(zip(devices, reversed(devices), strict=True))
    queues = {device: collections.deque() for device in devices}  # what is on its way to a device: (due time, frame)
    free_at = dict.fromkeys(devices, 0.0)
    while True:
        due = min((queue[0][0] for queue in queues.values() if queue), default=None)
        wait_s = None if due is None else max(0.0, due - time.monotonic())
        for source in select.select(devices, [], [], wait_s)[0]:
            frame, target, now = os.read(source, FRAME_BYTES), others[source], time.monotonic()
            free_at[target] = max(now, free_at[target]) + (len(frame) / bytes_per_s if bytes_per_s else 0.0)
            queues[target].append((free_at[target] + delay_s, frame))
        for target, queue in queues.items():
            while queue and queue[0][0] <= time.monotonic():
                try:
                    os.write(target, queue.popleft()[1])
                except OSError:  # the device is down
                    continue


if __name__ == "__main__":
    host, switch, port, delay, rate = sys.argv[1:]
    taps = open_tap(int(host), "eth0"), open_tap(int(switch), port)
    print("up", flush=True)
    carry(taps, float(delay), float(rate))
