from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence

from tests.conftest import DECODER, ENCODER, tone
from tiny_audio.audio.clip import Clip
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.ctc import LOGIT_SCALE, AudioCTC
from tiny_audio.model.packing import pack
from tiny_audio.training.validation import Validation

NUM_TOKENS, TEXTS = [9, 12, 7, 2], [[3, 5, 5], [7, 2, 9, 2], [], [4, 6, 8]]  # the last has more to say than time
ENDING = [1, 0]


def test_losses_and_gradients_are_those_of_ctc_over_the_whole_vocabulary():
    torch.manual_seed(0)
    audio, head = torch.randn(sum(NUM_TOKENS), 16, requires_grad=True), nn.Linear(16, 30, bias=False)
    labels = [text + ENDING for text in TEXTS]
    joined = torch.tensor([label for text in labels for label in text])
    ours = AudioCTC(0.3, blank_id=11, num_ending=2).losses(audio, head, joined, NUM_TOKENS, [len(text) for text in labels])
    log_probs = (head(audio) * LOGIT_SCALE).log_softmax(dim=1)
    targets, lengths = torch.tensor([label for text in TEXTS for label in text]), torch.tensor([len(text) for text in TEXTS])
    steps = pad_sequence(log_probs.split(NUM_TOKENS))
    plain = 0.3 * ctc_loss(steps, targets, torch.tensor(NUM_TOKENS), lengths, blank=11, reduction="none", zero_infinity=True)
    torch.testing.assert_close(ours, plain)
    assert ours[3] == 0
    share = torch.tensor([0.1, 0.2, 0.3, 0.4])
    gradients = (torch.autograd.grad((losses * share).sum(), audio)[0] for losses in (ours, plain))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("clips", [[Clip("a", tone(1.0), "the old baker"), Clip("b", tone(0.5), "")], []])
def test_a_training_pass_adds_it_to_the_loss_but_not_to_what_is_logged(clips):
    torch.manual_seed(0)
    model = ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=DECODER))
    batch = pack(clips, model.packing())
    plain = model(batch)
    model.ctc = AudioCTC.of(0.3, model.tokenizer, model.prompt)
    with torch.no_grad():
        assert model(batch).loss_sum == plain.loss_sum
    both = model(batch)
    assert Validation._batch_loss(SimpleNamespace(model=model), batch)[0] == plain.loss_sum
    both.loss_sum.backward()
    assert (both.loss_sum > plain.loss_sum) == bool(clips)
    assert both.clips.loss_sum == plain.clips.loss_sum
    assert all(weight.grad.isfinite().all() for weight in model.projector.parameters())


def test_alone_it_trains_the_projector_without_the_decoder():
    torch.manual_seed(0)
    model = ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=DECODER))
    batch = pack([Clip("a", tone(1.0), "the old baker"), Clip("b", tone(0.5), "")], model.packing())
    model.ctc = AudioCTC.of(0.3, model.tokenizer, model.prompt)
    added = model(batch).loss_sum - model(batch).clips.loss_sum
    model.ctc_alone, model.decode = True, None
    alone = model(batch)
    torch.testing.assert_close(alone.loss_sum * 0.3, added, rtol=1e-4, atol=1e-4)
    alone.loss_sum.backward()
    assert alone.clips.loss_sum == alone.loss_sum
    assert all(weight.grad.norm() > 0 for weight in model.projector.parameters())
    assert model(pack([], model.packing())).loss_sum == 0
