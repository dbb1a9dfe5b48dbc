"""What `genrec train` takes as JSON: every field that a recipe makes use of, nothing that it would ignore."""

import re

import pytest

from genrec_hub.options import config_fields, fits, read_arguments, read_config


@pytest.mark.parametrize(
    ("system", "text"),
    [
        (("sasrec",), '{"hidden_size": 128, "dropout": 0}'),
        (
            ("setrec",),
            '{"hidden": 128, "semantic_widths": [], "decay": [0.1, 1], "cf_decay": null, "lora": {}, "keep": 0.5, "spelling": 639}',
        ),
        (("setrec",), '{"text_config": {"model_type": "llama"}}'),
        (("setrec", "org/x"), '{"prompt": "next?", "attn_implementation": "eager", "semantic_tokens": 6, "lora": {"r": 8}}'),
        (("setrec", None, True), '{"cold_share": 0.1, "cold_score": 0, "dropout": 0.1}'),
        (("idgenrec",), '{"hidden": 160, "layers": 2, "dropout": 0.15, "vocabulary": 6000, "max_text": 48, "groups": 6}'),
        (("idgenrec", "org/x"), '{"generator": "org/y", "rounds": 3, "prompt": "item", "normalizer": "tree"}'),
    ],
)
def test_what_is_known_is_read(system, text):
    assert read_config(text, *system).keys() <= config_fields(*system).keys()


@pytest.mark.parametrize(
    ("system", "text", "says"),
    [
        (("setrec",), '{"semantic_tokens": true}', "--config holds true as 'semantic_tokens': it should be int."),
        (("setrec",), '{"decay": [0.1, "x"]}', "it should be float | list"),
        (("setrec",), '{"prior": 1}', "it should be bool."),
        (("setrec",), '{"epochs": 3}', "--config holds 'epochs': that is an option of its own, --epochs."),
        (("setrec",), '{"cf_size": 32}', "--config holds 'cf_size'"),  # found from the data
        (("setrec", "org/x"), '{"hidden": 64}', "--config holds 'hidden'"),  # a backbone has its size
        (("setrec", "org/x"), '{"text_config": {}}', "--config holds 'text_config'"),
        (("setrec", None, True), '{"keep": 0.5}', "--config holds 'keep': it takes alpha, beta, cf_decay"),
        (("idgenrec",), '{"generator": "org/y"}', "did you mean 'generator_rate'?"),
        (("sasrec",), '{"num_items": 5}', "--config holds 'num_items'"),
        (("sasrec",), "[]", "--config is []: it should be a JSON object"),
    ],
)
def test_what_is_not_is_refused_in_words(system, text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        read_config(text, *system)


def test_a_finished_idgenrec_keeps_its_shape(tmp_path):
    (tmp_path / "processor_config.json").write_text("{}")
    assert config_fields("idgenrec", str(tmp_path)) == {"rounds": int, "generator_rate": float}


def test_arguments_are_the_trainers():
    text = '{"bf16": true, "gradient_accumulation_steps": 4, "num_train_epochs": 2, "report_to": ["none"], "eval_strategy": "no"}'
    assert read_arguments(text)["gradient_accumulation_steps"] == 4
    for wrong, says in (
        ('{"seed": 3}', "an option of its own, --seed"),
        ('{"max_steps": "x"}', "as 'max_steps': it should be int."),
        ('{"zzz": 1}', "it takes the fields of transformers.TrainingArguments."),
    ):
        with pytest.raises(ValueError, match=says):
            read_arguments(wrong)


def test_types_of_json():
    assert fits(1, float)
    assert fits([1, 2.5], tuple[float, ...])
    assert fits(None, str | None)
    assert not fits(None, bool)
    assert not fits(1.5, int)
    assert not fits(True, float)
    assert not fits(["a"], list[int])
    assert not fits("r", dict)
