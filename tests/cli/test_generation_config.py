"""What an export says of templates and generation, and what `fico run` does with them."""

import json

import pytest
from cli_tools import copied, edit_json, edit_listed
from transformers import GenerationConfig

from fico_export import models


@pytest.fixture
def exported(export, embedding_only):
    """exported(checkpoint) → stderr of an export that traces next to nothing."""

    def run(checkpoint, *arguments):
        outcome = export("--no-verify", *arguments, model=checkpoint)
        assert outcome.code == 0, outcome.err
        return outcome.err

    return run


def test_what_generate_would_do_and_a_bundle_does_not_is_named(exported, checkpoint):
    asked = {
        "num_beams": 4,
        "guidance_scale": 1.5,
        "penalty_alpha": 0.6,
        "forced_eos_token_id": 2,
        "max_time": 3.0,
    }
    edit_json(checkpoint / "generation_config.json", **asked)
    said = exported(checkpoint)
    for name, value in asked.items():
        assert f"{name} {value}" in said


def test_values_that_change_nothing_are_not_named(exported, checkpoint):
    defaults = GenerationConfig._get_default_generation_params()
    edit_json(checkpoint / "generation_config.json", **defaults, guidance_scale=None, max_time=None)
    assert "generation_config" not in exported(checkpoint)


def test_a_value_that_generate_would_refuse_is_refused_by_name(refused, checkpoint):
    edit_json(checkpoint / "generation_config.json", repetition_penalty=-1)
    refused(model=checkpoint, words=["repetition_penalty is -1", "generation_config.json", "greater than 0"])


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({"generation": 7, "config": 8, "text_config": 9}, [7]),
        ({"generation": [7, 8], "config": 9}, [7, 8]),
        ({"generation": None, "config": 8, "text_config": 9}, [8]),
        ({"config": [8, 9]}, [8, 9]),
        ({"text_config": 9}, [9]),
        ({"generation": None, "config": None, "text_config": [9, 3]}, [9, 3]),
    ],
)
@pytest.mark.parametrize("with_file", [True, False])
def test_the_end_is_found_wherever_it_stands(checkpoint, places, expected, with_file):
    put_ends(checkpoint, places)
    if not with_file:
        if places.get("generation") is not None:
            return
        (checkpoint / "generation_config.json").unlink()
        raw = json.loads((checkpoint / "config.json").read_text())
        theirs = GenerationConfig.from_model_config(raw).eos_token_id
        assert ([theirs] if isinstance(theirs, int) else theirs) == expected
    loaded = models.load(checkpoint)
    assert loaded.tokens.eos_ids == expected
    assert loaded.files().warnings == ()
    written = loaded.files().generation_config["eos_token_id"]
    assert ([written] if isinstance(written, int) else written) == expected


def put_ends(checkpoint, places):
    """Write eos_token_id to the places named, and remove it from the others."""
    edit_json(checkpoint / "generation_config.json", eos_token_id=places.get("generation"))
    config = json.loads((checkpoint / "config.json").read_text())
    for owner, place in ((config, "config"), (config["text_config"], "text_config")):
        owner.pop("eos_token_id", None)
        if place in places:
            owner["eos_token_id"] = places[place]
    (checkpoint / "config.json").write_text(json.dumps(config))


def test_an_end_that_stands_nowhere_is_a_warning(exported, checkpoint):
    put_ends(checkpoint, {"text_config": None})
    said = exported(checkpoint)
    assert "nothing will ever stop" in said
    edit_json(checkpoint / "generation_config.json", eos_token_id=2)
    assert "stop" not in exported(checkpoint, "--overwrite")


def test_an_end_that_only_the_decoders_class_has_is_taken_with_a_warning(exported, checkpoint):
    put_ends(checkpoint, {})
    assert "no config names a token that ends an answer: 2" in exported(checkpoint)
    assert models.load(checkpoint).tokens.eos_ids == [2]


def test_an_end_that_is_no_id_is_refused(refused, checkpoint):
    edit_json(checkpoint / "generation_config.json", eos_token_id="</s>")
    refused(model=checkpoint, words=["eos_token_id", "'</s>'"])


def test_no_template_at_all_is_a_warning_that_names_the_form_and_the_place(exported, checkpoint):
    (checkpoint / "chat_template.json").unlink()
    said = exported(checkpoint)
    assert "USER: <image>" in said
    assert str(checkpoint / "chat_template.jinja") in said


def test_a_template_of_texts_is_a_warning_that_names_the_form_and_the_place(exported, checkpoint):
    (checkpoint / "chat_template.json").unlink()
    edit_json(
        checkpoint / "tokenizer_config.json",
        chat_template="{% for m in messages %}{{ m.content + '\n' }}{% endfor %}",
    )
    said = exported(checkpoint)
    assert "takes texts alone" in said
    assert str(checkpoint / "chat_template.jinja") in said


def test_a_template_that_shows_no_image_is_refused_with_a_fix_about_the_template(refused, checkpoint):
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].role }}"}))
    refused(
        model=checkpoint,
        words=["the chat template", str(checkpoint / "chat_template.jinja"), "delete chat_template"],
    )


@pytest.fixture
def changed(bundle, tmp_path):
    """changed(generation=…, eos_ids=…) → a bundle whose authors would have chosen so."""

    def make(eos_ids=None, **generation):
        folder = copied(bundle, tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}")
        edit_listed(folder, "generation_config.json", **generation)
        if eos_ids is not None:
            edit_json(folder / "manifest.json", tokens__eos_ids=eos_ids)
        return folder

    return make


def ids(fico, folder, *arguments):
    return fico("run", folder, "-p", "What is it?", "--json", *arguments).json["token_ids"]


def test_flags_win_over_what_the_authors_chose(fico, bundle, changed):
    few = ("--max-new-tokens", 12)
    greedy = ids(fico, bundle, *few)
    sampling = changed(do_sample=True, temperature=3.0, top_k=0)
    assert ids(fico, sampling, *few, "--seed", 1) != greedy
    assert ids(fico, sampling, *few, "--seed", 1) == ids(fico, sampling, *few, "--seed", 1)
    assert ids(fico, sampling, *few, "--seed", 1) != ids(fico, sampling, *few, "--seed", 2)
    assert ids(fico, sampling, *few, "--greedy") == ids(fico, sampling, *few, "--temperature", 0) == greedy
    assert ids(fico, sampling, *few, "--top-k", 1) == greedy
    penalised = changed(repetition_penalty=5.0)
    assert ids(fico, penalised, *few) != greedy
    assert ids(fico, penalised, *few, "--repetition-penalty", 1) == greedy
    assert len(ids(fico, changed(max_new_tokens=3))) == 3
    assert len(ids(fico, changed(max_new_tokens=3), "--max-new-tokens", 5)) == 5


def test_flags_that_contradict_are_refused(fico, bundle):
    ask = ("run", bundle, "-p", "x", "--max-new-tokens", 2)
    fico(*ask, "--greedy", "--temperature", "0.7").refuses("--greedy", "--temperature 0.7")
    fico(*ask, "--top-p", "0.9").refuses("top_p is 0.9", "--temperature 1")
    assert fico(*ask, "--top-p", "0.9", "--temperature", "1").code == 0


def test_stop_strings_of_the_authors_end_an_answer(fico, bundle, changed):
    text = fico("run", bundle, "-p", "What is it?", "--json", "--max-new-tokens", 12).json["text"]
    word = text[3:6]
    stopped = fico(
        "run", changed(stop_strings=word), "-p", "What is it?", "--json", "--max-new-tokens", 12
    ).json
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == text[: text.index(word)]


def test_an_answer_that_was_cut_says_so(fico, bundle):
    outcome = fico("run", bundle, "-p", "x", "--max-new-tokens", 2)
    assert "cut (length): 2 tokens" in outcome.err
    outcome = fico("run", bundle, "-p", "x", "--max-new-tokens", 100_000)
    assert "cut (context)" in outcome.err


def test_an_empty_answer_says_so(fico, bundle, changed):
    first = ids(fico, bundle, "--max-new-tokens", 1)
    outcome = fico("run", changed(eos_ids=first), "-p", "What is it?")
    assert outcome.out == ""
    assert "the answer is empty: 1 token, finish reason eos" in outcome.err
