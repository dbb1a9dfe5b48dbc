"""The command line as a user runs it: answers on stdout, the rest on stderr, faults in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from genrec_hub import cli
from genrec_hub.cli import app
from genrec_hub.pipeline import PRETRAINED

runner = CliRunner()
needs_checkpoint = pytest.mark.skipif(not (PRETRAINED / "setrec-foundation").is_dir(), reason="the embedded checkpoint is absent")


def run(*arguments: str, **more):
    return runner.invoke(app, list(arguments), prog_name="genrec", **more)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Forty items in two families and sixty users who stay in theirs; ids in no order."""
    items, interactions = tmp_path / "items.csv", tmp_path / "interactions.csv"
    items.write_text("item_id,title\n" + "".join(f"{(n * 17) % 40:02d}x,{'red' if n % 2 else 'blue'} thing {n}\n" for n in range(40)))
    rows = []
    for user in range(60):
        for position in range(5):
            rows.append(f"u{user},{((user % 2 + 2 * ((user * 7 + position * (3 + user % 5)) % 20)) * 17) % 40:02d}x,{position}\n")
    interactions.write_text("user_id,item_id,position\n" + "".join(rows))
    return items, interactions


def test_help_answers_without_torch():
    code = (
        "import sys; sys.argv = ['genrec', '--help']\nfrom genrec_hub.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "recommend" in done.stdout
    assert done.stdout.strip().endswith("False")


@needs_checkpoint
def test_recommend_json_is_what_the_pipeline_returns():
    from genrec_hub import load

    done = run("recommend", "Argan Oil Shampoo for Dry Hair, 300 ml", "-k", "3", "--json")
    assert done.exit_code == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [a["rank"] for a in answers] == [1, 2, 3]
    expected = load()(["Argan Oil Shampoo for Dry Hair, 300 ml"], top_k=3)
    assert [a["item"] for a in answers] == [e["item"] for e in expected]
    assert [a["score"] for a in answers] == pytest.approx([e["score"] for e in expected], abs=1e-5)


@needs_checkpoint
def test_recommend_reads_stdin_only_when_asked():
    piped = run("recommend", "-", "-k", "2", "--json", input="Argan Oil Shampoo for Dry Hair, 300 ml\n\n")
    named = run("recommend", "Argan Oil Shampoo for Dry Hair, 300 ml", "-k", "2", "--json", input="something else\n")
    assert [a["item"] for a in json.loads(piped.stdout)] == [a["item"] for a in json.loads(named.stdout)]


@needs_checkpoint
def test_seen_items_come_again_when_asked():
    title = "Argan Oil Shampoo for Dry Hair, 300 ml"
    for flags, again in (((), False), (("--exclude-seen",), False), (("--include-seen",), True), (("--no-exclude-seen",), True)):
        answers = json.loads(run("recommend", title, "-k", "2", "--json", *flags).stdout)
        assert (title in [answer["item"]["title"] for answer in answers]) == again, flags


@needs_checkpoint
def test_recommend_for_people():
    done = run("recommend", "Argan Oil Shampoo for Dry Hair, 300 ml", "-k", "2")
    assert "  1. " in done.stdout
    assert "because of Argan Oil Shampoo" in done.stdout
    assert "(title, 100%)" in done.stderr


@needs_checkpoint
def test_doctor_finds_the_checkpoint_whole():
    done = run("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 0
    assert report["problems"] == []
    assert report["checkpoints"]["setrec-foundation"]["items"] > 400
    assert report["packages"]["torch"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recommend", "x", "--model", "no-such-model"], "No embedded checkpoint 'no-such-model'"),
        (["recommend", "x", "--catalog", "missing.csv"], "There is no file missing.csv"),
        (["evaluate", "--model", "none", "--items", "missing.csv", "--interactions", "x.csv"], "There is no file missing.csv"),
        (["train", "sasrec", "--items", "missing.csv", "--interactions", "x.csv", "--output", "o"], "There is no file missing.csv"),
    ],
)
def test_faults_are_one_sentence_on_stderr(arguments, says):
    done = run(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@needs_checkpoint
def test_wrong_columns_name_the_column(tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("colour,size\nred,1\n")
    done = run("recommend", "x", "--catalog", str(bad))
    assert done.exit_code == 1
    assert "bad.csv has no column item_id" in done.stderr


@pytest.mark.filterwarnings("ignore")
def test_train_evaluate_identify_recommend_end_to_end(files, tmp_path, monkeypatch):
    """A researcher's whole way on own tables, on the real sentence encoder, at the smallest size."""
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path / "cache"))
    items, interactions = map(str, files)
    model = tmp_path / "model"
    done = run(
        *("train", "setrec", "--items", items, "--interactions", interactions, "--output", str(model)),
        *("--epochs", "2", "--batch", "16", "--every", "1", "--json"),
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["settings"]["epochs"] == 2
    assert len(report["curve"]) == 2
    assert set(report["validation"]) == {"hr@10", "ndcg@10"}
    assert not (model / "checkpoints").exists()
    assert (model / "catalog" / "features.safetensors").is_file()

    done = run(
        *("evaluate", "--model", str(model), "--items", items, "--interactions", interactions),
        *("--baselines", "--sasrec", str(model / "cf"), "--json"),
    )
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    keys = "protocol zero_shot exclude_seen repeat_targets users items seed metrics ci baselines groups seconds model fingerprint command"
    assert set(result) == set(keys.split())
    assert result["users"] + result["repeat_targets"] == 60
    assert {"popularity", "item-knn", "text-knn-soft", "sasrec"} <= set(result["baselines"])

    done = run("identify", "--model", str(model), "--catalog", items, "--json")
    rows = json.loads(done.stdout)
    assert len(rows) == 40
    assert all(token["label"] for row in rows for token in row["identifier"]["tokens"])
    assert [token["slot"] for token in rows[0]["identifier"]["tokens"]] == ["cf", "sem1", "sem2", "sem3"]

    done = run("recommend", "red thing 1", "--model", str(model), "-k", "4", "--json")
    assert len(json.loads(done.stdout)) == 4

    again = run("train", "setrec", "--items", items, "--interactions", interactions, "--output", str(model), "--epochs", "2", "--resume")
    assert again.exit_code == 0, again.stderr

    timed = tmp_path / "timed.csv"
    timed.write_text(Path(interactions).read_text().replace("position", "timestamp"))
    line = ("--items", items, "--interactions", str(timed), "--protocol", "global-time")
    for verb in (
        ("evaluate", "--model", str(model)),
        ("evaluate", "--model", "none", "--sasrec", str(model / "cf")),
        ("train", "setrec", "--sasrec", str(model / "cf"), "--output", str(tmp_path / "other")),
    ):
        done = run(*verb, *line)
        assert done.exit_code == 1, verb
        assert "was trained under leave-one-out" in done.stderr
        assert "train it anew with --protocol global-time" in done.stderr
    done = run("evaluate", "--model", str(model), "--zero-shot", *line)
    assert done.exit_code == 0, done.stderr


@needs_checkpoint
@pytest.mark.filterwarnings("ignore")
def test_a_foundation_is_fine_tuned_and_its_card_names_both_terms(files, tmp_path, monkeypatch):
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path / "cache"))
    line = ("train", "setrec", "--items", str(files[0]), "--interactions", str(files[1]), "--output", str(tmp_path / "tuned"))
    done = run(*line, "--foundation", "setrec-foundation", "--epochs", "1", "--batch", "32", "--config", '{"dropout": 0.1}', "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["foundation"] == "setrec-foundation"
    assert "amazon18_cds" in report["train"]
    assert report["data"]["items"] == 40

    from genrec_hub import load
    from genrec_hub.cards import render_card

    pipe = load(tmp_path / "tuned")
    assert pipe.model.config.slots[0] == "cf"
    assert pipe.model.config.dropout == 0.1
    card = render_card(pipe.model, pipe, tmp_path / "tuned", [], "me/tuned")
    assert "license: other" in card
    assert "Fine-tuned from `setrec-foundation`" in card
    table = card.partition("## Training")[2].partition("```bash")[0]
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) == len(report["train"]) + 1  # the foundation's data with their terms, then the trainer's own
    assert all("not stated" not in row[3] for row in rows[:-1])
    assert rows[-1][1:3] == ["60", "40"]
    again = run(*line, "--foundation", "setrec-foundation", "--epochs", "1", "--batch", "32", "--resume")
    assert again.exit_code == 0, again.stderr


@pytest.mark.parametrize("wrong", [("idgenrec",), ("sasrec",), ("setrec", "--no-cf"), ("setrec", "--backbone", "org/x")])
def test_a_foundation_goes_with_setrec_alone(files, tmp_path, wrong):
    line = ("--items", str(files[0]), "--interactions", str(files[1]), "--output", str(tmp_path / "x"))
    done = run("train", *wrong, *line, "--foundation", "setrec-foundation")
    assert done.exit_code == 1
    assert "--foundation is a SETRec to fine-tune" in done.stderr
    if wrong == ("sasrec",):
        other = run("train", "setrec", *line, "--foundation", "idgenrec-foundation")
        assert other.exit_code == 1
        assert "Only a SETRec without a CF slot" in other.stderr


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (
            ("sasrec", "--config", "not json", "--backbone", "org/x", "--strategy", "bogus"),
            "--backbone goes with setrec and idgenrec, --strategy goes with idgenrec: leave them out of `train sasrec`.",
        ),
        (("setrec", "--strategy", "recommender"), "--strategy goes with idgenrec: leave it out of `train setrec`."),
        (("idgenrec", "--no-cf"), "--cf/--no-cf goes with setrec: leave it out of `train idgenrec`."),
        (("idgenrec", "--negatives", "0"), "--negatives goes with setrec and sasrec"),
        (("setrec", "--no-cf", "--sasrec", "cf"), "--sasrec is for the CF tokens, which --no-cf leaves out"),
        (("sasrec", "--config", "not json"), "--config is no JSON"),
        (("sasrec", "--config", '{"hidden_size": "128"}'), "--config holds \"128\" as 'hidden_size': it should be int."),
        (("sasrec", "--config", '{"num_heads": 3}'), "hidden_size is 64: it should be a multiple of num_heads, 3."),
        (("setrec", "--config", '{"semantic_token": 6}'), "--config holds 'semantic_token': did you mean 'semantic_tokens'"),
        (("setrec", "--arguments", '{"bf61": true}'), "--arguments holds 'bf61': did you mean 'bf16'"),
        (("idgenrec", "--strategy", "bogus"), "The strategy is 'bogus'"),
    ],
)
def test_training_ignores_nothing_that_was_typed(files, tmp_path, typed, says):
    done = run("train", *typed, "--items", str(files[0]), "--interactions", str(files[1]), "--output", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_app_without_a_model_does_not_open(tmp_path):
    for name, says in (("nope", "No embedded checkpoint 'nope'"), (str(tmp_path), "holds no checkpoint")):
        done = run("demo", "--model", name)
        assert done.exit_code == 1
        assert says in done.stderr


def test_a_domain_is_pushed_without_what_checkpoints_have(files, tmp_path):
    for option in (("--tag", "x"), ("--no-catalog",), ("--evaluation", "nowhere.json"), ("--max-shard-size", "1GB")):
        done = run("push", str(tmp_path), "org/shop", *option)
        assert done.exit_code == 1
        assert f"{tmp_path} is a domain, and" in done.stderr
        assert option[0].removeprefix("--no-") in done.stderr


def test_training_names_what_is_not_installed(files, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    done = run("train", "sasrec", "--items", str(files[0]), "--interactions", str(files[1]), "--output", str(tmp_path / "o"))
    assert done.exit_code == 1
    assert done.stderr.strip() == "genrec: Training needs accelerate: pip install 'genrec_hub[train]'"


@pytest.mark.parametrize("verb", ["recommend", "evaluate", "push"])
def test_a_sasrec_is_no_model_to_load(files, tmp_path, verb):
    from genrec_hub import SASRecConfig, SASRecModel

    SASRecModel(SASRecConfig(num_items=40, hidden_size=8)).save_pretrained(tmp_path / "cf")
    given = ("--model", str(tmp_path / "cf"))
    line = {"recommend": ("x", *given), "evaluate": ("--items", str(files[0]), "--interactions", str(files[1]), *given)}
    done = run(verb, *line.get(verb, (str(tmp_path / "cf"), "me/x")))
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        f"genrec: {tmp_path / 'cf'} is a SASRec, which reads no texts: it goes to --sasrec of genrec evaluate or genrec train setrec."
    )


def test_training_without_anyone_to_validate_on(files, tmp_path):
    """Two items a user: nothing can be held out, so the last weights are kept and the report says nothing of validation."""
    items, interactions = files
    rows = interactions.read_text().splitlines()
    interactions.write_text("\n".join(row for row in rows if row.split(",")[2] in ("position", "0", "1")) + "\n")
    output = tmp_path / "sasrec"
    done = run(
        *("train", "sasrec", "--items", str(items), "--interactions", str(interactions), "--output", str(output), "--epochs", "1"),
        *("--config", '{"hidden_size": 8, "dropout": 0}', "--json"),
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["validation"] == {}
    assert json.loads((output / "config.json").read_text())["hidden_size"] == 8
    assert (output / "model.safetensors").is_file()


def test_python_m_is_the_same_program():
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "genrec_hub", "recommend", "--help"], capture_output=True, text=True, env=env, check=True)
    assert "What was bought, oldest first" in done.stdout


@needs_checkpoint
def test_answers_are_utf_8_and_end_where_nobody_reads(tmp_path):
    items = tmp_path / "items.csv"
    items.write_text("item_id,title\na,シャンプー\nb,ドライヤー\n", encoding="utf-8")
    line = [sys.executable, "-m", "genrec_hub", "identify", "--catalog", str(items)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([*line, "--json"], capture_output=True, env=env, check=True)
    assert [row["title"] for row in json.loads(done.stdout.decode("utf-8"))] == ["シャンプー", "ドライヤー"]
    for more in ([], ["--json"]):
        with subprocess.Popen([*line, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as cut:
            cut.stdout.close()  # as `head` does when it has enough
            said = cut.stderr.read().decode("utf-8")
        assert cut.returncode == 0, said
        assert "Broken pipe" not in said
        assert "Traceback" not in said
