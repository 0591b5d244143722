"""Which replica of the model an ingress gives its next clip."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica


class FewestClips(FIFOMixin, RequestRouter):
    """Gives a clip to the replica that has the fewest clips of this ingress; of several, to the one that was taken longest ago.

    Serve's own router compares how many all ingresses have at each of two replicas, and learns of a replica's only when it sends
    it something. So many ingresses together took the one that had been shorter for so long that the other had nothing to do.
    """

    def initialize_state(self) -> None:
        """Is called by Serve before the first clip."""
        self.num_clips: Counter[ReplicaID] = Counter()
        self.taken_at: defaultdict[ReplicaID, float] = defaultdict(random.random)  # at first, each ingress has its own order

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Chooses one replica; where that is full, two others at random, of which Serve takes the one with less to do."""
        fewest, *others = sorted(
            candidate_replicas, key=lambda one: (self.num_clips[one.replica_id], self.taken_at[one.replica_id])
        )
        self.taken_at[fewest.replica_id] = time.monotonic()
        return [[fewest], random.sample(others, min(2, len(others)))]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Counts a clip that has been sent."""
        super().on_send_request(replica_id)
        self.num_clips[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Counts a clip that is back, or was refused or given up."""
        self.num_clips[replica_id] = max(0, self.num_clips[replica_id] - 1)
