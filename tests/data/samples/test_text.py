"""What every tokenizer promises, and what the vocabulary of words refuses."""

import pytest

import tasks  # noqa: F401  (registers clip)
from pipeline.data.samples.text import TOKENIZERS
from pipeline.errors import ConfigError

WORDS = ["a", "man", "rides", "the", "horse", ",", "."]
OPTIONS = {"words": {"words": WORDS, "context_length": 8}, "clip": {"context_length": 8}}
TEXT = "A man rides the horse"
LONG = "a man rides the horse , a man rides the horse ."


@pytest.fixture(params=TOKENIZERS.names())
def tokenizer(request):
    return TOKENIZERS.build(request.param, **OPTIONS[request.param])


def test_a_text_comes_back_lower_cased(tokenizer):
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT.lower()


def test_ids_stand_between_the_marks_and_below_the_vocabulary(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
    assert ids.count(tokenizer.eos_id) == ids.count(tokenizer.bos_id) == 1 and tokenizer.pad_id not in ids
    assert max(ids) < tokenizer.vocab_size
    assert len({tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}) == 3


def test_a_longer_text_loses_its_end_and_says_so(tokenizer):
    ids = tokenizer.encode(LONG)
    assert len(ids) == tokenizer.context_length and ids[-1] == tokenizer.eos_id
    assert tokenizer.is_cut(LONG) and not tokenizer.is_cut(TEXT)
    assert LONG.startswith(tokenizer.decode(ids))


def test_a_text_that_just_fits_is_whole(tokenizer):
    text = "a man rides the horse ."
    assert len(tokenizer.encode(text)) == tokenizer.context_length and not tokenizer.is_cut(text)
    assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == text.replace(" ", "")


def test_decoding_stops_at_the_first_eos_and_skips_padding(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode([*ids, tokenizer.pad_id, *ids]) == TEXT.lower()
    assert tokenizer.decode(ids[:3] + [tokenizer.pad_id]) == "a man"
    assert tokenizer.decode([]) == tokenizer.decode(tokenizer.encode("")) == ""


def test_words_splits_punctuation_and_marks_what_it_does_not_know():
    words = TOKENIZERS.build("words", words=WORDS, context_length=16)
    assert words.encode("The man, a HORSE.") == [1, 7, 5, 9, 4, 8, 10, 2]
    assert words.encode("a zebra") == [1, 4, 3, 2]
    assert words.decode(words.encode("a zebra")) == "a <unk>"
    assert words.vocab_size == len(WORDS) + 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": []}, "no list of words"),
        ({"words": "a man"}, "words is 'a man'; give a value of type"),
        ({"words": ["a", "Man"]}, "'Man'"),
        ({"words": ["a", "two words"]}, "'two words'"),
        ({"words": ["a", "man", "a"]}, "listed once, unlike 'a'"),
        ({"words": WORDS, "context_length": 2}, "context_length is 2"),
        ({"words": WORDS, "length": 2}, "its options: words, context_length"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TOKENIZERS.build("words", **options)


def test_an_unknown_tokenizer_is_told_the_nearest():
    with pytest.raises(ConfigError, match="unknown tokenizer 'word'; did you mean 'words'"):
        TOKENIZERS.build("word")
