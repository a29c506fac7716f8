"""The chat template of a checkpoint, the tokens it may name and the form it takes content in, against transformers."""

import json

import pytest
from cli_tools import copied, edit_json
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from fico_export import models
from fico_export.errors import CheckpointError
from fico_export.runtime.inputs.prompt import Message, PromptFormatter

# transformers leaves the files of named templates open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TRIMS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
JOINS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ASSISTANT:' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}[<image>]{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
NAMES = (
    "{% for m in messages %}{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endfor %}"
    "|{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ sep_token }}|{{ cls_token }}|{{ mask_token }}"
    "|{{ audio_token }}|{{ boi_token }}|{{ image_token }}"
)
QUESTION = [Message("user", "What is it?", 1)]


@pytest.fixture
def bare(tiny_checkpoint, tmp_path):
    """A checkpoint without any template, and the text of the one that it had."""
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    (folder / "chat_template.json").unlink()
    return folder, template


def formatter_of(folder):
    checkpoint = models.load(folder)
    files = checkpoint.files()
    return PromptFormatter(files.tokenizer, files.chat_template, checkpoint.tokens)


def rendered_by_transformers(folder):
    content = [{"type": "image", "image": Image.new("RGB", (3, 2))}, {"type": "text", "text": "What is it?"}]
    return AutoProcessor.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


def put(folder, template, place):
    """Write a template to one of the places where transformers searches."""
    if place == "chat_template.jinja":
        (folder / place).write_text(template)
    elif place == "additional_chat_templates":
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "default.jinja").write_text(template)
        (folder / place / "tools.jinja").write_text("tools")
    elif place == "named in processor_config.json":
        edit_json(folder / "processor_config.json", chat_template={"default": template, "tools": "tools"})
    elif place == "chat_template.json":
        (folder / place).write_text(json.dumps({"chat_template": template}))
    else:
        edit_json(folder / place, chat_template=template)


PLACES = [
    "processor_config.json",
    "named in processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_template_is_found_wherever_transformers_finds_it(bare, place):
    folder, template = bare
    put(folder, template.replace("ASSISTANT:", f"{place}:"), place)
    assert formatter_of(folder).render(QUESTION) == rendered_by_transformers(folder)
    assert f"{place}:" in formatter_of(folder).render(QUESTION)
    assert models.load(folder).files().warnings == ()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("processor_config.json", "chat_template.json"),
        ("processor_config.json", "chat_template.jinja"),
        ("chat_template.json", "chat_template.jinja"),
        ("chat_template.jinja", "additional_chat_templates"),
        ("chat_template.json", "tokenizer_config.json"),
    ],
)
def test_of_two_templates_that_differ_the_one_of_transformers_is_taken_and_the_export_warns(
    bare, first, second
):
    folder, template = bare
    put(folder, template.replace("ASSISTANT:", "FIRST:"), first)
    put(folder, template.replace("ASSISTANT:", "SECOND:"), second)
    assert formatter_of(folder).render(QUESTION) == rendered_by_transformers(folder)
    (warning,) = models.load(folder).files().warnings
    assert f"{first} is taken" in warning
    assert second in warning


def test_the_same_template_in_two_places_is_no_reason_to_warn(bare):
    folder, template = bare
    put(folder, template, "chat_template.json")
    put(folder, template, "tokenizer_config.json")
    assert models.load(folder).files().warnings == ()


def test_the_tokenizers_template_is_the_last_and_may_be_one_of_several(bare):
    folder, template = bare
    named = [{"name": "default", "template": template}, {"name": "rag", "template": "rag"}]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    theirs = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert formatter_of(folder).render(QUESTION) == theirs


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("processor_config.json", {"rag": "a", "tools": "b"}, "'rag', 'tools'"),
        ("tokenizer_config.json", [{"name": "rag", "template": "a"}], "list"),
        ("tokenizer_config.json", 7, "int"),
        ("processor_config.json", ["a"], "list"),
    ],
)
def test_templates_of_which_none_is_the_default_are_refused_with_a_fix_that_works(bare, file, content, words):
    folder, template = bare
    edit_json(folder / file, chat_template=content)
    with pytest.raises(CheckpointError, match=file) as caught:
        models.load(folder).files()
    assert words in caught.value.what
    assert str(folder / "chat_template.jinja") in caught.value.fix
    put(folder, template, "chat_template.jinja")
    if "delete" in caught.value.fix:
        edit_json(folder / file, chat_template=...)
    assert models.load(folder).files().chat_template == template


def test_a_legacy_template_beside_named_ones_is_refused_as_in_transformers(bare):
    folder, template = bare
    put(folder, template, "chat_template.json")
    put(folder, template, "additional_chat_templates")
    with pytest.raises(ValueError, match="conflicting"):
        AutoProcessor.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="additional_chat_templates") as caught:
        models.load(folder).files()
    assert "delete" in caught.value.fix


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (TRIMS, "<|user|><image>\nWhat is it?</s><|assistant|>"),
        (JOINS, "USER: <image>\nWhat is it? ASSISTANT:"),
    ],
)
def test_a_template_of_texts_gets_the_image_token_in_the_text(bare, template, prompt):
    folder, _ = bare
    put(folder, template, "tokenizer_config.json")
    formatter = formatter_of(folder)
    assert formatter.content == "text"
    assert formatter.render(QUESTION) == prompt
    assert formatter.encode(QUESTION).count(formatter.tokens.image_id) == 1
    # As the tokenizer's own method renders texts.
    texts = [
        {"role": "user", "content": "<image>\n<image>\na"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        texts, add_generation_prompt=True, tokenize=False
    )
    turns = [Message("user", "a", 2), Message("assistant", "b"), Message("user", "c")]
    assert formatter.render(turns) == theirs


def test_a_template_that_takes_both_forms_gets_parts_as_in_transformers(bare):
    folder, _ = bare
    put(folder, EITHER, "chat_template.jinja")
    assert formatter_of(folder).content == "parts"
    assert formatter_of(folder).render(QUESTION) == rendered_by_transformers(folder) == "[<image>]What is it?"


@pytest.mark.parametrize("older", [False, True])
def test_every_special_token_that_a_template_may_name_is_that_of_transformers(bare, older):
    folder, _ = bare
    put(folder, NAMES, "chat_template.jinja")
    named = {"pad_token": "<pad>", "sep_token": {"__type": "AddedToken", "content": "<sep>"}, "mask_token": None,
             "boi_token": "<boi>", "unk_token": "<unk>"}  # fmt: skip
    extra = {"audio_token": "<audio>", "image_token": "<image>"}
    if older:
        named["sep_token"].pop("__type")
        (folder / "special_tokens_map.json").write_text(json.dumps(named))
        edit_json(folder / "tokenizer_config.json", extra_special_tokens=extra)
    else:
        edit_json(folder / "tokenizer_config.json", **named, extra_special_tokens=extra)
    assert formatter_of(folder).render(QUESTION) == rendered_by_transformers(folder)
    assert "<boi>" in formatter_of(folder).render(QUESTION)


def test_tokens_that_no_file_names_are_those_of_the_tokenizers_class(bare):
    folder, _ = bare
    put(folder, NAMES, "chat_template.jinja")
    edit_json(folder / "tokenizer_config.json", bos_token=..., eos_token=...)
    assert formatter_of(folder).render(QUESTION) == rendered_by_transformers(folder)


def test_a_special_token_that_is_no_text_is_refused(bare):
    folder, template = bare
    put(folder, template, "chat_template.jinja")
    edit_json(folder / "tokenizer_config.json", eos_token=["</s>"])
    with pytest.raises(CheckpointError, match="eos_token of tokenizer_config"):
        models.load(folder)


def test_additional_tokens_without_a_name_are_given_as_a_list(bare):
    folder, _ = bare
    put(folder, "{{ additional_special_tokens | join(' ') }}", "chat_template.jinja")
    edit_json(folder / "tokenizer_config.json", additional_special_tokens=["<a>", {"content": "<b>"}])
    assert formatter_of(folder).render(QUESTION) == "<a> <b>"
