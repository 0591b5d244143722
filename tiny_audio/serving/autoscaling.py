"""Decides how many replicas of the model there should be, by the audio that they have to transcribe.

Serve's controller runs a copy of this module, so it imports nothing of ours.
"""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

AUDIO_S, CLIPS = "audio_s", "clips"  # what a replica has in hand, waiting there or being transcribed


class AudioPolicy:
    """Asks for as many replicas as the audio and the clips in hand want; Serve keeps to the bounds and the delays.

    Clips count beside audio, because many short ones can fill all places of a replica with little of it.

    Args:
        target_audio_s: seconds of audio that a replica should have in hand.
        target_clips: clips that it should have in hand.
    """

    def __init__(self, target_audio_s: float, target_clips: int):
        self.target_audio_s, self.target_clips = target_audio_s, target_clips

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Returns the number of replicas that Serve should have, and no state; all numbers are means of its look-back period."""
        audio_s, clips = (sum(context.aggregated_metrics.get(name, {}).values()) for name in (AUDIO_S, CLIPS))
        mean_s = audio_s / clips if clips else 0.0
        audio_s += mean_s * context.total_queued_requests  # in the ingresses, where Serve knows only their number
        return max(audio_s / self.target_audio_s, context.total_num_requests / self.target_clips), {}
