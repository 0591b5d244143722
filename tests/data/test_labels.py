import pytest

from tiny_audio.config import ConfigError, DataConfig
from tiny_audio.data.labels import Truecaser, clean_label, learn_names, make_truecaser


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("  the old\tbaker \n", "the old baker"),
        ("the <unk> old [background noise] baker", "the old baker"),
        ("<unk>", ""),
        ("[laughter] ...", ""),
        ("well<|im_end|>", "well"),
        ("it's 3 o'clock (or so), café!", "it's 3 o'clock (or so), café!"),
        ("", ""),
    ],
)
def test_labels_lose_their_markup_and_nothing_else(text, label):
    assert clean_label(text) == label


NAMES = {"brussels": "Brussels", "o'brien": "O'Brien", "nato": "NATO", "mary": "Mary", "smith": "Smith"}


@pytest.mark.parametrize(
    ("text", "cased"),
    [
        ("well i think i'm late and i'll go", "Well I think I'm late and I'll go"),
        ("iced tea in iran is mine", "Iced tea in iran is mine"),
        ("mary's train to brussels", "Mary's train to Brussels"),
        ("mr o'brien of nato, the mary-smith home", "Mr O'Brien of NATO, the Mary-Smith home"),
        ("HE SAID I KNOW BRUSSELS", "He said I know Brussels"),
        ("stop. 3rd time? 'tis over", "Stop. 3rd time? 'Tis over"),
        ("I met Mary in brussels", "I met Mary in brussels"),  # cased already: not ours to change
        ("", ""),
    ],
)
def test_truecasing(text, cased):
    assert Truecaser(NAMES)(text) == cased
    assert Truecaser(NAMES)(cased) == cased


def test_names_are_learned_from_the_inside_of_sentences():
    lines = [
        "The train to Paris. Trains like Paris, and “Paris was full.”",
        "Will asked Will if the will of Will O'Brien, says O'Brien, will do; he will, and will.",
        "Once he saw Nice.",
        "A Rose, and Rose again, beside a rose and a rose.",
        "CHAPTER ONE OF THE BOOK OF THE PARROTS",
        "Chapter and chapter.",
    ]
    assert learn_names(lines) == {"paris": "Paris", "o'brien": "O'Brien"}


def test_the_setting_says_what_is_cased(tmp_path):
    assert make_truecaser(DataConfig()) is None
    assert make_truecaser(DataConfig(truecase=True))("to paris i go") == "To paris I go"
    (tmp_path / "text.txt").write_text("To Paris.\nFrom Paris.\n")
    cased = DataConfig(truecase=True, truecase_text=str(tmp_path / "text.txt"))
    assert make_truecaser(cased)("to paris i go") == "To Paris I go"
    with pytest.raises(ConfigError, match=r"nowhere\.txt: no such text file"):
        make_truecaser(DataConfig(truecase=True, truecase_text="nowhere.txt"))
