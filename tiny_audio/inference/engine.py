"""Implements continuous batching: clips join and leave between decode steps, and one thread at a time drives the device.

A round admits waiting clips, prefills them together, makes one token for each transcript in progress, and hands on the
previous round's tokens while the device computes (nano-vllm and SGLang's scheduler work the same way).
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from tiny_audio.inference.scheduler import Answer, Request, Scheduler, Token

SWITCH_S = 0.0005  # that another thread may keep Python from one that must not wait; Python's own 5 ms are half a decode step
Tokens = Callable[[], list[Token]]  # waits for the device; returns a token for each row


class Runner(Protocol):
    """Describes what the engine computes with; `runner.py` has the implementation."""

    lookahead: int  # launches that may be in flight while the host continues

    def join(self, requests: list[Request]) -> None: ...  # gives each request a slot

    def leave(self, request: Request) -> None: ...

    def prefill(self, requests: list[Request]) -> Tokens: ...

    def decode(self, requests: list[Request]) -> Tokens: ...


class Engine:
    """Takes clips from any thread; computes on the thread that calls `run`, or on its own thread after `start`."""

    def __init__(self, runner: Runner, scheduler: Scheduler):
        self.runner, self.scheduler = runner, scheduler
        self.launched: deque[tuple[list[Request], Tokens]] = deque()
        self.turn = threading.Lock()  # held by the thread that drives the device
        self.arrived = threading.Event()
        self.thread: threading.Thread | None = None
        self.closed = False

    def submit(self, request: Request) -> Future[Answer]:
        """Queues a request and returns the future of its answer. Cancelling it frees what it holds at the next step.

        After `close` the future fails with a RuntimeError.
        """
        if self.closed:
            request.fail(RuntimeError("the engine is closed"))
            return request.future
        self.scheduler.waiting.append(request)
        self.arrived.set()
        return request.future

    def run(self) -> None:
        """Works on the calling thread until no request is waiting or running."""
        with self.turn:
            while self._round():
                pass

    def start(self) -> None:
        """Starts a thread of the engine's own, which works until `close`."""
        sys.setswitchinterval(SWITCH_S)
        self.thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Ends the engine's thread once every submitted request is answered."""
        self.closed = True
        self.arrived.set()
        if self.thread:
            self.thread.join()

    def _work(self) -> None:
        while not self.closed or self.scheduler.waiting:
            self.arrived.wait()
            self.arrived.clear()
            self.run()

    def _round(self) -> bool:
        """Runs one round; returns whether there is more to do."""
        try:
            if admitted := self.scheduler.admit():
                self._prefill(admitted)
            rows = self.scheduler.rows()
            if rows:
                # behind a prefill both stay in flight, so that the next one is laid out meanwhile
                self._launched(rows, self.runner.decode(rows), self.runner.lookahead * (1 + bool(admitted)))
            else:
                self._collect(0)
        except Exception as error:
            self.launched.clear()
            self._fail(list(self.scheduler.live.values()), error)
        return bool(self.launched or self.scheduler.live or self.scheduler.waiting)

    def _prefill(self, requests: list[Request]) -> None:
        """Prefills requests together. If the batch fails, tries each alone, so that one cannot fail the others."""
        self.runner.join(requests)
        self.scheduler.start(requests)
        try:
            tokens = self.runner.prefill(requests)
        except Exception as error:
            if len(requests) == 1:
                self._fail(requests, error)
                return
            for request in requests:
                self._leave(request)
            for request in requests:
                self._prefill([request])
        else:
            self._launched(requests, tokens, self.runner.lookahead)

    def _launched(self, requests: list[Request], tokens: Tokens, num_in_flight: int) -> None:
        for request in requests:
            request.num_launched += 1
        self.launched.append((requests, tokens))
        self._collect(num_in_flight)

    def _collect(self, num_left: int) -> None:
        """Hands on the tokens of all launches but the last `num_left`."""
        while len(self.launched) > num_left:
            requests, tokens = self.launched.popleft()
            for request, token in zip(requests, tokens(), strict=True):
                if self.scheduler.live.get(request.slot) is request:  # otherwise it ended a step or two ago
                    self._hand_on(request, token)

    def _hand_on(self, request: Request, token: Token) -> None:
        try:
            if self.scheduler.take_token(request, token):
                self._leave(request)
        except Exception as error:  # raised by the caller's `on_token`
            self._fail([request], error)

    def _leave(self, request: Request) -> None:
        del self.scheduler.live[request.slot]
        self.runner.leave(request)

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        for request in requests:
            self._leave(request)
            request.fail(error)
