import pytest

from tiny_audio.evaluation.evaluate import shuffle_audio
from tiny_audio.evaluation.wer import ErrorCount, count_errors, normalize, word_error_rate


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "words"),
    [
        ("The old baker.", "the OLD baker", 0, 3),
        ("the old baker", "the baker", 1, 3),
        ("the old baker", "a very old baker", 2, 3),
        ("the old baker", "", 3, 3),
        ("", "hello there", 2, 0),
        ("", "", 0, 0),
    ],
)
def test_errors_are_counted(reference, hypothesis, errors, words):
    assert count_errors(reference, hypothesis) == ErrorCount(errors, words)


def test_normalize_keeps_words_and_drops_the_rest():
    assert normalize(" It's 3 o'clock -- café!\n") == "it's 3 o'clock café"


def test_the_interval_contains_the_rate_and_narrows_with_more_data():
    few = word_error_rate([ErrorCount(i % 10 == 0, 7) for i in range(50)])
    many = word_error_rate([ErrorCount(i % 10 == 0, 7) for i in range(2000)])
    assert few.wer == many.wer == pytest.approx(0.1 / 7)
    assert few.ci_low <= few.wer <= few.ci_high
    assert many.ci_high - many.ci_low < (few.ci_high - few.ci_low) / 3
    with pytest.raises(ValueError, match="no words"):
        word_error_rate([ErrorCount(0, 0)])


def test_shuffled_audio_gives_every_row_another_transcript():
    lines = [{"reference": word, "hypothesis": word, "num_errors": 0, "num_words": 1} for word in ("a", "b", "c")]
    assert [line["num_errors"] for line in shuffle_audio(lines)] == [1, 1, 1]
