"""Prompts to the token ids of transformers, and token ids back to text, piece by piece."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoProcessor

from fico_export.bundle.manifest import Tokens
from fico_export.errors import ConfigError, InputError
from fico_export.runtime.inputs.prompt import Message, PromptFormatter
from fico_export.runtime.streaming import StopStrings, StreamDecoder

CONVERSATIONS = {
    "one picture": [Message("user", "What is it?", images=1)],
    "two pictures": [Message("user", "What differs?", images=2)],
    "no picture": [Message("user", "Who are you?")],
    "system": [Message("system", "Be brief."), Message("user", "What is it?", images=1)],
    "turns": [
        Message("user", "What is it?", images=1),
        Message("assistant", "A cat."),
        Message("user", "Which colour, and 这是什么 🐈‍⬛?", images=1),
    ],
    "empty text": [Message("user", "", images=1)],
    "spaces and lines": [Message("user", '  a\n\n b\t<b> & "c"  ', images=1)],
}
GENERATION = (
    "{% for message in messages %}\n  {% generation %}{{ message['content'] | tojson }}{% endgeneration %}\n"
    "{% if loop.index > 1 %}{% break %}{% endif %}\n{% endfor %}\n"
)


def special_tokens(folder, **changes):
    image_id = json.loads((folder / "config.json").read_text())["image_token_index"]
    return Tokens(**{
        "image": "<image>",
        "image_id": image_id,
        "bos": "<s>",
        "eos": "</s>",
        "eos_ids": [2],
        **changes,
    })  # fmt: skip


def visual_tokens(folder):
    return json.loads((folder / "config.json").read_text())["image_seq_length"]


def template_of(folder):
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]


def formatter_of(folder, template=None, **changes):
    tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return PromptFormatter(tokenizer_json, template, special_tokens(folder, **changes))


@pytest.fixture(scope="module", params=["public layout", "saved by transformers 5"])
def checkpoint(request, tiny_checkpoint, tmp_path_factory):
    """The folder and transformers' processor of it."""
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    if request.param == "public layout":
        return tiny_checkpoint, processor
    folder = tmp_path_factory.mktemp("saved")
    processor.save_pretrained(folder)
    (folder / "config.json").write_text((tiny_checkpoint / "config.json").read_text())
    return folder, AutoProcessor.from_pretrained(folder)


@pytest.fixture
def formatter(tiny_checkpoint):
    return formatter_of(tiny_checkpoint)


def as_transformers(messages, picture=None):
    image = {"type": "image"} if picture is None else {"type": "image", "image": picture}
    return [
        {"role": message.role, "content": [image] * message.images + [{"type": "text", "text": message.text}]}
        for message in messages
    ]


def reference_ids(processor, messages, **options):
    out = processor.apply_chat_template(
        as_transformers(messages, Image.new("RGB", (30, 20))),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **options,
    )
    return out["input_ids"][0]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_token_ids_are_those_of_transformers(checkpoint, name):
    folder, processor = checkpoint
    ours = formatter_of(folder, template_of(folder)).encode(CONVERSATIONS[name], visual_tokens(folder))
    assert ours == reference_ids(processor, CONVERSATIONS[name])


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_default_template_is_that_of_llava(checkpoint, name):
    folder, processor = checkpoint
    for begins in (True, False):
        text = formatter_of(folder).render(CONVERSATIONS[name], add_generation_prompt=begins)
        theirs = processor.apply_chat_template(
            as_transformers(CONVERSATIONS[name]), add_generation_prompt=begins
        )
        assert text == theirs


@pytest.mark.parametrize(
    "template",
    [
        GENERATION,
        "{{ bos_token }}{{ image_token }}{{ eos_token }}{% if tools is none %}no tools{% endif %}",
        "{% set n = namespace(x=1) %}\n   {% for m in messages %}\n  {% set n.x = n.x + 1 %}\n{% endfor %}\n{{ n.x }}\n\n",
        "{{ strftime_now('%Y') }}{{ [1, 'é'] | tojson(indent=2) }}",
    ],
)
def test_a_template_renders_as_in_transformers(checkpoint, template):
    folder, processor = checkpoint
    messages = [Message("user", "é <b> 'x'", images=1), Message("assistant", "b"), Message("user", "c")]
    theirs = processor.apply_chat_template(
        as_transformers(messages), chat_template=template, add_generation_prompt=True
    )
    assert formatter_of(folder, template).render(messages) == theirs


def test_a_second_bos_is_not_added(checkpoint):
    folder, processor = checkpoint
    template = "{{ bos_token }}" + template_of(folder)
    messages = CONVERSATIONS["one picture"]
    ours = formatter_of(folder, template).encode(messages, visual_tokens(folder))
    assert ours == reference_ids(processor, messages, chat_template=template)
    assert ours.count(1) == 1


@given(text=st.text(max_size=40).filter(lambda text: "<image>" not in text), images=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_any_text_has_the_token_ids_of_transformers(checkpoint, text, images):
    folder, processor = checkpoint
    messages = [Message("user", text, images)]
    assert formatter_of(folder).encode(messages, visual_tokens(folder)) == reference_ids(processor, messages)


def test_each_picture_is_one_token(formatter):
    assert formatter.encode(CONVERSATIONS["two pictures"]).count(formatter.tokens.image_id) == 2


def test_a_tokenizer_saved_with_truncation_cuts_nothing(tiny_checkpoint):
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=500)
    cutting = PromptFormatter(tokenizer.to_str(), None, special_tokens(tiny_checkpoint))
    messages = CONVERSATIONS["turns"]
    assert cutting.encode(messages) == formatter_of(tiny_checkpoint).encode(messages)


def test_text_with_the_image_token_is_refused(formatter):
    with pytest.raises(InputError, match="<image>") as caught:
        formatter.encode([Message("user", "What is <image>?")])
    assert "--image" in caught.value.fix


IN_ORDER = "{% for p in messages[0].content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"


def test_images_stand_where_the_text_has_places_for_them(tiny_checkpoint):
    formatter = formatter_of(tiny_checkpoint, IN_ORDER)

    assert (
        formatter.render([Message("user", "Is <image> like <image>?", images=2)])
        == "Is <image> like <image>?"
    )
    assert formatter.render([Message("user", "Alike?", images=2)]) == "<image><image>Alike?"


def test_a_template_of_texts_has_images_in_their_places(tiny_checkpoint):
    formatter = formatter_of(tiny_checkpoint, "{{ messages[0].content }}")

    assert formatter.render([Message("user", "Is <image> red?", images=1)]) == "Is <image> red?"


@pytest.mark.parametrize("text", ["<image>?", "<image> <image> <image>?"])
def test_places_for_another_number_of_images_are_refused(tiny_checkpoint, text):
    with pytest.raises(InputError, match="places for images") as caught:
        formatter_of(tiny_checkpoint, IN_ORDER).render([Message("user", text, images=2)])
    assert "once for each image" in caught.value.fix


def test_places_that_the_template_does_not_keep_are_refused(formatter):
    with pytest.raises(InputError, match="shows images before the text") as caught:
        formatter.encode([Message("user", "What is <image>?", images=1)])
    assert caught.value.fix == "drop <image> from the text"


def test_text_that_is_not_unicode_is_refused(formatter):
    with pytest.raises(InputError, match="character 3") as caught:
        formatter.encode([Message("user", "caf\udce9")])
    assert "UTF-8" in caught.value.fix


@pytest.mark.parametrize("template", ["{{ messages[0].content[-1].text }}", "{{ (image_token + ' ') * 2 }}"])
def test_a_template_that_loses_or_doubles_a_picture_is_refused(tiny_checkpoint, template):
    with pytest.raises(InputError, match="1 images") as caught:
        formatter_of(tiny_checkpoint, template).encode(CONVERSATIONS["one picture"])
    assert caught.value.fix


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] * 'x' }}", "multiply"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
    ],
)
def test_a_template_that_fails_says_why(tiny_checkpoint, template, why):
    with pytest.raises(ConfigError, match=why) as caught:
        formatter_of(tiny_checkpoint, template).render([Message("user", "hi")])
    assert "user" in caught.value.what
    assert caught.value.fix


def test_files_that_do_not_fit_are_refused(tiny_checkpoint):
    with pytest.raises(ConfigError, match="template"):
        formatter_of(tiny_checkpoint, "{% for %}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        PromptFormatter("{", None, special_tokens(tiny_checkpoint))
    with pytest.raises(ConfigError, match=r"is \d+, the model's is 7"):
        formatter_of(tiny_checkpoint, image_id=7)
    with pytest.raises(ConfigError, match="is None"):
        formatter_of(tiny_checkpoint, image="<picture>")


def byte_level_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: id_ for id_, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def metaspace_tokenizer():
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "▁▁", "�"]
    tokenizer = Tokenizer(
        models.BPE({token: id_ for id_, token in enumerate(vocabulary)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@pytest.fixture(scope="module", params=["llama", "byte level", "metaspace"])
def tokenizer(request, tiny_checkpoint):
    if request.param == "llama":
        return Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    return byte_level_tokenizer() if request.param == "byte level" else metaspace_tokenizer()


def streamed(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(id_) for id_ in ids), decoder.flush()]


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_streamed_text_is_the_text_of_all_ids(tokenizer, data):
    beyond = tokenizer.get_vocab_size() + 20  # ids that only the model's padded vocabulary has
    ids = data.draw(st.lists(st.integers(0, beyond), max_size=30))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@given(text=st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_streamed_text_is_the_text_that_was_encoded(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", ["a 🐈 b", "这是一只猫, no", "né 👩‍👩‍👧 x"])
def test_no_piece_shows_half_a_character(tokenizer, text):
    pieces = streamed(tokenizer, tokenizer.encode(text).ids)
    assert "\ufffd" not in "".join(pieces)


def test_an_emoji_comes_with_the_token_after_its_bytes(tiny_checkpoint):
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    cat = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "🐈".encode()]
    word = tokenizer.token_to_id("e")
    assert streamed(tokenizer, [word, *cat, word]) == ["e", "", "", "", "", "🐈e", ""]
    assert streamed(tokenizer, cat) == ["", "", "", "", "🐈"]
    assert streamed(tokenizer, cat[:3]) == ["", "", "", "\ufffd" * 3]


def test_only_the_first_word_loses_its_space(tiny_checkpoint):
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    space, word, end = (tokenizer.token_to_id(token) for token in ("▁", "e", "</s>"))
    assert streamed(tokenizer, [end, space, word, end, space, word]) == ["", "", "e", "", " ", "e", ""]


def test_each_token_is_decoded_in_a_short_window(formatter):
    class Counting:
        def __init__(self, tokenizer):
            self.tokenizer, self.decoded = tokenizer, 0

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def decode(self, ids, skip_special_tokens):
            self.decoded += len(ids)
            return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    counting = Counting(formatter.tokenizer)
    ids = formatter.tokenizer.encode("a plain sentence 🐈 of words " * 60).ids
    streamed(counting, ids)
    assert counting.decoded < 5 * len(ids)


def test_flush_begins_a_new_text(formatter):
    decoder = StreamDecoder(formatter.tokenizer)
    for _ in range(2):
        ids = formatter.tokenizer.encode("hello there").ids
        assert "".join([*map(decoder.push, ids), decoder.flush()]) == "hello there"


def stopped(stops, pieces):
    scanner, shown = StopStrings(stops), ""
    for piece in pieces:
        text, hit = scanner.push(piece)
        shown += text
        if hit:
            return shown, True
    return shown + scanner.flush(), False


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["one ", "US", "ER", ": two"], ("one ", True)),
        (["one USER: two"], ("one ", True)),
        (["one US", "E"], ("one USE", False)),
        (["UUS", "ER", "USER:"], ("UUSER", True)),
        (["a", "\n", "\n", "b"], ("a", True)),
        (["a\n", "b"], ("a\nb", False)),
        ([], ("", False)),
    ],
)
def test_a_stop_string_is_cut_however_it_comes(pieces, expected):
    assert stopped(["USER:", "\n\n"], pieces) == expected


def test_text_is_held_back_only_while_it_may_become_a_stop_string():
    scanner = StopStrings(["###"])
    assert [scanner.push(piece) for piece in ("a", "b#", "#", "c", "###d", "e")] == [
        ("a", False),
        ("b", False),
        ("", False),
        ("##c", False),
        ("", True),
        ("", True),
    ]
    assert scanner.flush() == ""


def test_without_stop_strings_nothing_is_held_back():
    assert StopStrings([]).push("anything") == ("anything", False)


@given(
    stops=st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
    pieces=st.lists(st.text("ab#", max_size=4), max_size=12),
)
@settings(max_examples=300, deadline=None)
def test_how_text_is_cut_into_pieces_changes_nothing(stops, pieces):
    whole = "".join(pieces)
    shown, hit = stopped(stops, pieces)
    assert (shown, hit) == stopped(stops, list(whole)) == stopped(stops, [whole])
    assert hit == any(stop in whole for stop in stops)
    assert not any(stop in shown for stop in stops)
    assert whole.startswith(shown)


@pytest.mark.parametrize("stops", ["USER:", ["a", ""]])
def test_stop_strings_that_cannot_be_are_refused(stops):
    with pytest.raises(ConfigError, match="stop strings") as caught:
        StopStrings(stops)
    assert "list" in caught.value.fix
