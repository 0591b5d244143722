"""CTC over the decoder's own tokens, a second loss that gets a fresh projector off its plateau.

A frozen decoder tells a random projector little: for thousands of clips it learns no more than which texts are likely. CTC
(Graves et al. 2006) tells it at once which words were said. Audio tokens go through the decoder's own output head, so where
that is tied to the embeddings they come to look like the embeddings of the words, which the decoder knows how to copy.
It has no weights, and no part in transcription. Letters in shapes are those of `features.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.model.prompt import IGNORED_LABEL, Prompt, label_ids

LOGIT_SCALE = 1.5  # where it began and nearly stayed, when it was trained


class _CTCLosses(torch.autograd.Function):
    """Computes CTC losses, (B,), from the log-probabilities (T, B, classes) of some of the classes.

    torch's own gradient is right only below a softmax over the same classes: it has the classes' probabilities added, which
    such a softmax takes away again. Here they are taken away at once.
    """

    @staticmethod
    def forward(ctx, log_probs, targets, num_steps, num_targets):
        with torch.enable_grad():
            inputs = log_probs.detach().requires_grad_()
            losses = ctc_loss(inputs, targets, num_steps, num_targets, reduction="none", zero_infinity=True)
            (gradients,) = torch.autograd.grad(losses.sum(), inputs)
        within = torch.arange(len(inputs), device=inputs.device)[:, None] < num_steps.to(inputs.device)
        counts = within & (losses.detach() > 0)  # a text that is too long for its audio has loss 0
        ctx.save_for_backward(gradients - inputs.detach().exp() * counts[..., None])
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, wanted):
        (gradients,) = ctx.saved_tensors
        return gradients * wanted[:, None], None, None, None


@dataclass(frozen=True)
class AudioCTC:
    """Says how CTC is computed for a model: its `weight` beside the decoder's loss, and how labels become its targets."""

    weight: float
    blank_id: int  # the token that stands where no word begins: a space
    num_ending: int  # ids at the end of each answer that are not spoken

    @classmethod
    def of(cls, weight: float, tokenizer, prompt: Prompt) -> AudioCTC:
        """Makes that of a decoder with this tokenizer and prompt."""
        (ending,) = label_ids(tokenizer, prompt, [""])
        return cls(weight, tokenizer(" ", add_special_tokens=False)["input_ids"][-1], len(ending))

    def label_losses(
        self, audio: torch.Tensor, head: nn.Module, labels: torch.Tensor, num_tokens: list[int], num_labels: list[int]
    ) -> torch.Tensor:
        """Computes what stands for the decoder's losses where CTC trains alone, (L,): each clip's, shared out over its labels.

        They are not weighted. The arguments are those of `losses`.
        """
        sizes = torch.tensor(num_labels, device=audio.device)
        shares = self.losses(audio, head, labels, num_tokens, num_labels) / self.weight / sizes
        shares = shares.repeat_interleave(sizes, output_size=len(labels))
        return torch.where(labels == IGNORED_LABEL, 0, shares)

    def losses(
        self, audio: torch.Tensor, head: nn.Module, labels: torch.Tensor, num_tokens: list[int], num_labels: list[int]
    ) -> torch.Tensor:
        """Computes the weighted loss of each clip, (B,); zero where its text has more tokens than its audio.

        Only the tokens of a clip's own text are told apart, so that the recursion need not carry the whole vocabulary.

        Args:
            audio: (A, D) audio tokens, clips end to end.
            head: the decoder's output head.
            labels: (L,) the answers, clips end to end.
            num_tokens: the audio tokens of each clip.
            num_labels: the labels of each clip.
        """
        answers = pad_sequence(labels.clamp(min=0).split(num_labels), batch_first=True)
        columns = torch.cat([torch.full_like(answers[:, :1], self.blank_id), answers], dim=1)
        lengths = torch.tensor(num_tokens, device=audio.device)
        columns = columns.repeat_interleave(lengths, dim=0, output_size=len(audio))
        logits = head(audio).float() * LOGIT_SCALE
        log_probs = logits.gather(1, columns) - logits.logsumexp(1, keepdim=True)
        classes = 1 + (answers[:, :, None] == answers[:, None, :]).int().argmax(dim=2)  # equal tokens are one class
        num_targets = torch.tensor(num_labels) - self.num_ending
        steps = pad_sequence(log_probs.split(num_tokens))
        return self.weight * _CTCLosses.apply(steps, classes, torch.tensor(num_tokens), num_targets)
