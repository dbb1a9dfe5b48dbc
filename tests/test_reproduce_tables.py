"""scripts/reproduce_tables.py: cells are well named, finished ones are skipped, pages hold the JSON's numbers; rooms, pairs, artefacts."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import tables.render
import tables.systems
from tables import artefacts, cells, figures, measure, published, studies
from tables.cells import Cell

from genrec_hub.domain import Domain, Sequences
from genrec_hub.evaluation import evaluate, rank
from genrec_hub.metrics import ndcg
from genrec_hub.pipeline import DomainRanker
from genrec_hub.processing_idgenrec import IDGenRecProcessor


@pytest.fixture(scope="module")
def tool(script):
    return script("reproduce_tables")


@pytest.fixture
def place(tool, tmp_path, synthetic_domain, encoder, monkeypatch):
    """A prepared domain with its own split, four cells of it, an encoder that needs no download; gives the command line."""
    domain = synthetic_domain(60, 40, 0)
    given = np.zeros(len(domain.sequences.items), np.int64)
    for start, end in zip(domain.sequences.offsets, domain.sequences.offsets[1:], strict=False):
        given[end - 2 : end] = (1, 2)
        given[start] = 0
    Domain(domain.catalog, domain.users, domain.sequences, domain.times, given).save(tmp_path / "data" / "setrec_toys")
    short = {"epochs": 1, "batch": 16}
    made = [
        Cell("table-1", "setrec_toys", "given", "popularity", "popularity"),
        Cell("table-1", "setrec_toys", "given", "text-knn-last", "text-knn-last"),
        Cell("table-1", "setrec_toys", "given", "sasrec", "sasrec", {"hidden_size": 16}, short, seeds=(0, 1)),
        Cell("table-1", "setrec_toys", "given", "setrec", "tiger", {"hidden": 32}, short),
        Cell("studies", "setrec_toys", "given", "optima-tiger", "beam-optima", {"widths": [5], "users": 3}, {}, ("setrec",)),
        Cell("artefacts", "setrec_toys", "given", "fault", "text-knn-last", twin="setrec_toys/popularity"),
        *(Cell(table, "setrec_sports", "given", f"never-{table}", "popularity") for table in ("table-5", "table-6", "artefacts", "curves")),
    ]
    monkeypatch.setattr(tool, "CELLS", made)
    monkeypatch.setattr(tables.systems, "_VECTORS", {})
    tool.read_domain.cache_clear()
    monkeypatch.setattr(tables.systems, "text_vectors", lambda catalog: encoder.encode(catalog.lines))
    line = ["--source", tmp_path / "data", "--output", tmp_path / "out", "--bootstrap", "20"]
    return tmp_path, [*map(str, line)]


def test_the_table_of_cells_is_sound():
    names = [cell.name for cell in cells.CELLS]
    assert len(names) == len(set(names))
    known = {cell.name: number for number, cell in enumerate(cells.CELLS)}
    for number, cell in enumerate(cells.CELLS):
        assert (cell.system in tables.systems.SYSTEMS) != (cell.system in studies.STUDIES), cell.name
        for row in cell.needs:
            assert known[f"{cell.domain}/{row}"] < number, f"{cell.name} comes before {row}, which it reads"
        assert cell.table in ("table-1", "table-4", "table-5", "table-6", "artefacts", "curves", "studies")
        assert cells.quick(cell).settings["epochs"] == 1
        assert ("ARTEFACT" in cell.note) == bool(cell.twin)
        assert not cell.twin or known[cell.twin] < number
        assert not cell.twin or cell.table == "artefacts"
    asked = {cell.stage for cell in cells.CELLS if cell.table in ("curves", "studies")}
    assert asked == {"validation"}, "curves must not look at test"


def results_of(folder, row):
    return json.loads((folder / "out" / "setrec_toys" / row / "seed0" / "result.json").read_text())


def test_cells_run_once_resume_and_render(tool, place, monkeypatch):
    folder, line = place
    assert tool.main([*line, "--only", "setrec_toys/*"]) == 0
    results = sorted(path.relative_to(folder / "out").as_posix() for path in folder.rglob("result.json"))
    assert len(results) == 7
    one = json.loads((folder / "out" / "setrec_toys" / "sasrec" / "seed1" / "result.json").read_text())
    for name in ("command", "commit", "seconds", "cpu_seconds", "hardware", "fingerprint"):
        assert one[name], name
    assert one["seed"] == 1
    assert one["training"]["seconds"] > 0
    assert one["training"]["settings"]["seed"] == 1
    assert one["test"]["groups"].keys() == {"all"}
    low, high = one["test"]["groups"]["all"]["NDCG@10"]["ci"]
    assert low <= one["test"]["groups"]["all"]["NDCG@10"]["mean"] <= high
    domain = Domain.from_folder(folder / "data" / "setrec_toys")
    training = domain.split("given").training
    read = sum(len(own) for own in (training[user] for user in range(len(training))) if len(own) > 1)
    assert one["training"]["epoch_tokens"] == read  # a token an item
    codes = json.loads((folder / "out" / "setrec_toys" / "setrec" / "seed0" / "result.json").read_text())["training"]
    assert codes["epoch_tokens"] == pytest.approx(read * (codes["tokens"]["mean"] + 1))  # each code is ended
    expected = evaluate(None, domain, protocol="given", vectors=np.eye(len(domain.catalog)), bootstrap=1)
    popular = json.loads((folder / "out" / "setrec_toys" / "popularity" / "seed0" / "result.json").read_text())
    assert popular["test"]["groups"]["all"]["Recall@10"]["mean"] == pytest.approx(expected["baselines"]["popularity"]["HR@10"])

    # nothing is done twice; what was interrupted before its result is done again, from the checkpoint that it has
    done = []
    real = tool.measure
    monkeypatch.setattr(tool, "measure", lambda *given: done.append(1) or real(*given))
    assert tool.main([*line, "--only", "setrec_toys/*"]) == 0
    assert not done
    (folder / "out" / "setrec_toys" / "setrec" / "seed0" / "result.json").unlink()
    weights = folder / "out" / "setrec_toys" / "setrec" / "seed0" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert tool.main([*line, "--only", "setrec_toys/*"]) == 0
    assert len(done) == 1
    assert weights.stat().st_mtime_ns == before

    # the page: our numbers are the JSON's, published ones stand in columns of their own
    page = folder / "page" / "results.md"
    assert tool.main([*line, "--render", str(page)]) == 0
    text = page.read_text()
    assert "7 of 11 runs" in text
    first, second = (results_of(folder, row)["test"]["groups"]["all"] for row in ("text-knn-last", "popularity"))
    fault = next(line for line in text.splitlines() if line.startswith("| fault "))
    difference = f"{first['NDCG@10']['mean'] - second['NDCG@10']['mean']:+.4f}".replace("0.", ".")
    assert tables.render._number(second["Recall@10"]["mean"]) in fault
    assert difference in fault.rpartition("| ")[2]
    assert tables.render._number(popular["test"]["groups"]["all"]["NDCG@10"]["mean"]) in text
    hero = next(text_line for text_line in text.splitlines() if text_line.startswith("| **setrec**"))
    assert hero.endswith("| .0110 | .0189 | .0089 | .0118 | 60 |")
    assert "sasrec (2 seeds)" in text
    assert "±" in text
    assert "Not run: never-curves." in text
    assert "| setrec less | all R@10 | all N@10 |" in text
    assert "- All R@10, setrec against SASRec (sasrec): " in text
    assert all((page.parent / "figures" / f"{name}.png").is_file() for name in ("beams", "training"))
    popular["test"]["groups"]["all"]["NDCG@10"]["mean"] = 0.7654
    (folder / "out" / "setrec_toys" / "popularity" / "seed0" / "result.json").write_text(json.dumps(popular))
    assert tool.main([*line, "--render", str(page)]) == 0
    assert ".7654" in page.read_text()


def test_a_checkpoint_at_hand_is_measured_where_it_is(tool, place, caplog):
    folder, line = place
    assert tool.main([*line, "--only", "setrec_toys/sasrec", "--seeds", "1"]) == 0
    other = [*line[:3], str(folder / "other"), *line[4:], "--only", "setrec_toys/sasrec"]
    model = folder / "out" / "setrec_toys" / "sasrec" / "seed0" / "model"
    assert tool.main([*other, "--seeds", "1", "--checkpoint", f"setrec_toys/sasrec={model}"]) == 0
    first, second = (
        json.loads((folder / name / "setrec_toys" / "sasrec" / "seed0" / "result.json").read_text()) for name in ("out", "other")
    )
    assert first["test"]["groups"] == second["test"]["groups"]
    assert second["checkpoint"] == str(model)
    assert first["checkpoint"] is None
    assert not (folder / "other" / "setrec_toys" / "sasrec" / "seed0" / "model").exists()
    # one of another protocol is refused, in words; so is a name that is no cell
    report = json.loads((model / "training.json").read_text())
    report["settings"]["protocol"] = "leave-one-out"
    (model / "training.json").write_text(json.dumps(report))
    third = [*line[:3], str(folder / "third"), *line[4:], "--only", "setrec_toys/sasrec", "--seeds", "1"]
    assert tool.main([*third, "--checkpoint", f"setrec_toys/sasrec={model}"]) == 1
    assert "was trained under leave-one-out" in caplog.text
    config = json.loads((folder / "out" / "setrec_toys" / "sasrec" / "seed0" / "model" / "config.json").read_text())
    (folder / "foreign").mkdir()
    for path in model.iterdir():
        (folder / "foreign" / path.name).write_bytes(path.read_bytes())
    (folder / "foreign" / "config.json").write_text(json.dumps({**config, "catalog_fingerprint": "f" * 64}))
    fourth = [*line[:3], str(folder / "fourth"), *line[4:], "--only", "setrec_toys/sasrec", "--seeds", "1"]
    assert tool.main([*fourth, "--checkpoint", f"setrec_toys/sasrec={folder / 'foreign'}"]) == 1
    assert "belongs to the catalogue ffffffffffff" in caplog.text
    assert tool.main([*line, "--checkpoint", "setrec_toys/nobody=x"]) == 1
    assert "no cell" in caplog.text


def test_a_row_names_no_checkpoint_that_it_does_not_read(tool):
    from tables.cells import Cell
    from tables.render import _command

    typed = "python tables.py --checkpoint toys/sasrec=a --checkpoint toys/setrec=b --only 'toys/*' --checkpoint beauty/sasrec=c"
    cell = Cell("table-1", "toys", "given", "setrec", "setrec", needs=("sasrec",))
    assert _command(typed, cell) == typed.removesuffix(" --checkpoint beauty/sasrec=c")
    popularity = Cell("table-1", "toys", "given", "popularity", "popularity")
    assert _command(typed, popularity) == "python tables.py --only 'toys/*'"


def test_what_is_needed_comes_first(tool, place, caplog):
    _, line = place
    assert tool.main([*line, "--only", "*/optima-tiger"]) == 1
    assert "run that cell first" in caplog.text


def test_a_given_checkpoint_is_as_good_as_a_finished_cell(tool, place):
    folder, line = place
    assert tool.main([*line, "--only", "setrec_toys/setrec"]) == 0
    model = folder / "out" / "setrec_toys" / "setrec" / "seed0" / "model"
    other = [*line[:3], str(folder / "other"), *line[4:], "--only", "*/optima-tiger", "--checkpoint", f"setrec_toys/setrec={model}"]
    assert tool.main(other) == 0
    study = json.loads((folder / "other" / "setrec_toys" / "optima-tiger" / "seed0" / "result.json").read_text())["study"]
    assert study["users"] == 3
    assert 0 <= study["widths"]["5"]["items_missed"] <= 1


def test_a_sample_is_a_domain(tool, synthetic_domain):
    domain = synthetic_domain(40, 60, 1)
    own = tool.sample_domain(domain, 10)
    assert len(own) == 10
    for user, name in enumerate(own.users):
        row = domain.users.index(name)
        assert [own.catalog.ids[item] for item in own.sequences[user]] == [domain.catalog.ids[item] for item in domain.sequences[row]]
        assert np.array_equal(
            own.times[own.sequences.offsets[user] : own.sequences.offsets[user + 1]],
            domain.times[domain.sequences.offsets[row] : domain.sequences.offsets[row + 1]],
        )


# Rooms: what searches looks in the room alone


def test_a_search_looks_in_the_room_alone(tiny_idgenrec, id_processor, shop):
    """Few beams find nothing of a small room by chance; within it they find its best, as the exact scores have it."""
    processor, model = id_processor(), tiny_idgenrec(normalizer="tree")
    model.config.beams = 4
    room = np.zeros(len(shop), bool)
    room[[3, 17, 31, 44]] = True
    histories = [np.array([1, 2]), np.array([5, 9, 11]), np.array([40])]
    ranker = DomainRanker(model, processor)
    found = ranker.within(room).scores(histories)
    assert torch.equal(torch.isfinite(found), torch.from_numpy(room).expand(3, -1))
    with torch.no_grad():
        exact = model.score(
            processor.inputs([[processor.identifiers[int(r)].tokens for r in own] for own in histories], model), processor.trie
        )
    torch.testing.assert_close(found[:, room], exact[:, torch.from_numpy(room)], atol=1e-5, rtol=1e-5)
    cases = Domain(shop, ["a", "b", "c"], Sequences.of([np.append(own, (8, row)) for own, row in zip(histories, (3, 17, 20), strict=True)]))
    asked, _ = cases.leave_one_out().test.asked()
    answer = rank({"row": ranker}, asked, len(shop), rooms={"cold": room})["row"].among["cold"]
    assert len(answer.ranks) == 2  # the third target lies outside
    assert all(own.max() <= 4 for own in answer.ranks)


def test_seconds_are_those_of_the_search_among_all(tiny_idgenrec, id_processor):
    timed = measure.Timed(DomainRanker(tiny_idgenrec(), id_processor()))
    there = timed.within(np.arange(60) < 5)
    there.scores([np.array([1])])
    assert timed.cpu == 0
    timed.scores([np.array([1])])
    assert timed.cpu > 0
    still = measure.Timed(artefacts.LargerOnly(timed, ["a"] * 60))
    assert still.within(np.ones(60, bool)) is still


# Pairs


def test_pairs_are_of_the_same_users(tmp_path):
    from genrec_hub.evaluation import Answer

    rng = np.random.default_rng(0)
    ranks = [np.array([int(rank)]) for rank in rng.integers(1, 30, 300)]
    better = [np.maximum(1, own - 8) for own in ranks]
    lists = np.zeros((300, 10), np.int64)
    for name, own in (("ours", better), ("theirs", ranks)):
        (tmp_path / name).mkdir()
        measure.keep(tmp_path / name / measure.ANSWERS, {"all": Answer(own, own, lists)})
    assert [own.tolist() for own in measure.kept(tmp_path / "ours" / measure.ANSWERS)["all"]] == [own.tolist() for own in better]
    pair = measure.compare([tmp_path / "ours"], [tmp_path / "theirs"], 200)["all"]["NDCG@10"]
    assert pair["verdict"] == "better"
    assert pair["difference"] == pytest.approx(ndcg(better, 10).mean() - ndcg(ranks, 10).mean())
    assert measure.compare([tmp_path / "theirs"], [tmp_path / "ours"], 200)["all"]["NDCG@10"]["verdict"] == "worse"
    assert measure.compare([tmp_path / "ours"], [tmp_path / "ours"], 200)["all"]["NDCG@10"]["verdict"] == "no difference shown"
    two = measure.compare([tmp_path / "ours", tmp_path / "theirs"], [tmp_path / "theirs"], 200)["all"]["NDCG@10"]
    assert two["difference"] == pytest.approx(pair["difference"] / 2)  # a row counts with the mean over its seeds


# Artefacts


def test_key_sorted_histories_end_with_the_largest_id(synthetic_domain):
    domain = synthetic_domain(20, 40, 0)
    other = artefacts.key_sorted(domain)
    for user in range(20):
        names = [other.catalog.ids[item] for item in other.sequences[user]]
        assert names == sorted(domain.catalog.ids[item] for item in domain.sequences[user])
    ids = domain.catalog.ids

    class Even:
        def scores(self, histories):
            return torch.zeros(len(histories), 40)

    history = other.sequences[0][:-1]
    open_ = torch.isfinite(artefacts.LargerOnly(Even(), ids).scores([history])[0])
    assert open_.tolist() == [name > max(ids[item] for item in history) for name in ids]
    assert bool(open_[other.sequences[0][-1]])


def test_the_leak_puts_the_target_into_the_user_id_and_only_the_leak_does(tiny_idgenrec, id_processor, shop):
    bare = id_processor()
    histories = [np.array([0, 5, 9, 14]), np.array([3, 7, 30, 2]), np.array([0, 6, 9, 21])]
    domain = Domain(shop, ["a", "b", "c"], Sequences.of(histories))
    split = domain.leave_one_out()
    said = []

    def write(model, texts, *more, **named):
        said.append(list(texts))
        return [["argan oil"] for _ in texts]

    leaky = artefacts.UserIDs(bare.tokenizer, shop, bare.identifiers, "user").known(split, domain)
    fair = IDGenRecProcessor(bare.tokenizer, shop, bare.identifiers, "user")
    leaky.writer.write = fair.writer.write = write
    own = [leaky.tokens_of(row) for row in split.test.histories]
    model = tiny_idgenrec()
    for processor, leaks in ((leaky, True), (fair, False)):
        said.clear()
        processor.user_tokens(own, model)
        for text, history in zip(said[0], histories, strict=True):
            assert text.endswith(bare.identifiers[int(history[-1])].text) == leaks
    # in training users are known by their sequence, since their prefixes are alike
    trainer = object.__new__(artefacts.LeakyTrainer)
    trainer.users = {tuple(split.training[user].tolist()): histories[user] for user in range(3)}
    assert trainer.read_about_user(split.training[2], 1).tolist() == histories[2].tolist()
    said.clear()
    leaky.user_tokens([leaky.tokens_of(histories[2])], model)
    assert said[0][0].endswith(bare.identifiers[21].text)


# Studies and figures


def test_generate_finds_what_our_beam_finds(tiny_idgenrec, id_processor, shop):
    """The rival of the timing is asked the same question."""
    processor, model = id_processor(), tiny_idgenrec(normalizer="tree", length_penalty=0.0)
    inputs = processor.inputs([[processor.identifiers[row].tokens for row in (4, 8)]], model)
    ours = model.recommend(inputs, processor.trie, 5)
    theirs = studies.generate(
        model, processor, inputs, 5, studies.prefix_tree([own.tolist() for own in processor.identifiers.tokens], processor.writer.eos)
    )
    prompt = inputs["input_ids"].shape[1]
    found = [tuple(token for token in own[prompt:] if token not in (processor.writer.eos, processor.writer.pad)) for own in theirs.tolist()]
    assert found == [processor.identifiers[row].tokens for row in ours.rows[0].tolist()]


def test_published_figures_are_apart():
    assert published.setrec("setrec_toys", "setrec", "cold") == ((0.0443, 0.0812, 0.0310, 0.0445), 60)
    assert published.setrec("setrec_toys", "popularity", "all") == (None, None)
    assert published.idgenrec("amazon14_beauty", "alternate")[1] == (0.0463, 0.0665, 0.0328, 0.0393)
    for rows in published.SETREC.values():
        for *groups, _ in rows.values():
            for five, ten, gain_five, gain_ten in groups:
                assert five <= ten
                assert gain_five <= gain_ten


def test_figures_say_when_they_have_nothing(tmp_path):
    lines = figures.draw({}, tmp_path)
    assert lines[-1].startswith("Not run: beams, tokens, beta")
    assert not list(tmp_path.iterdir())


def test_quick_makes_every_cell_small():
    cell = next(cell for cell in cells.CELLS if cell.name == "setrec_toys/setrec")
    small = cells.quick(cell)
    assert (small.config["hidden"], small.config["spelling"], small.seeds) == (32, 63, (0,))
    assert small.config["semantic_tokens"] * 32 == 384 + 63 + 1
    assert replace(small, config=cell.config, settings=cell.settings, seeds=cell.seeds) == cell


@pytest.mark.parametrize("kind", ["qwen3", "t5"])
def test_validity_counts_the_ids_that_some_item_has(id_processor, tiny_idgenrec, monkeypatch, kind):
    processor, model = id_processor("packed" if kind == "qwen3" else "item", kind == "t5"), tiny_idgenrec(kind)
    processor.copy = 2.0
    own = [processor.identifiers[row].tokens for row in (5, 9)]
    answers = [[*own[0], model.eos], [*own[1], model.eos], [own[1][0], model.eos], *[[model.eos]] * 7]
    heard = {}

    def generate(**asked):
        heard.update(asked)
        before = [model.eos] if kind == "t5" else asked["input_ids"][0].tolist()
        lines = [[*before, *tokens] for tokens in answers]
        longest = max(map(len, lines))
        return torch.tensor([[*line, *[processor.writer.pad] * (longest - len(line))] for line in lines])

    monkeypatch.setattr(model.recommender, "generate", generate)
    histories = Sequences.of([np.array([1, 2, 9])])
    assert studies.beam_optima.validity(model, processor, histories) == {"valid": 0.2, "first_valid": 1.0, "seen": 0.1, "beams": 20}
    bias = processor.copy_bias([processor.identifiers[row].tokens for row in (1, 2, 9)])[-1]
    assert torch.equal(heard["logits_processor"](None, torch.zeros(1, len(bias))), bias[None])


def test_free_generation_runs(id_processor, tiny_idgenrec):
    found = studies.beam_optima.validity(tiny_idgenrec(), id_processor(), Sequences.of([np.array([1, 2]), np.array([4])]), beams=10)
    assert 0 <= found["first_valid"] <= 1
