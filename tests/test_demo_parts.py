"""Pieces of the demo that need neither server nor browser."""

import re
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from html import escape

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the demo extra is not installed")

import gradio as gr
import torch
from visitors import ATTACK, SETS, SHOP, TEXTS, FakeRecommender, FakeWriter, shop

from genrec_hub import demo
from genrec_hub import demo_cards as cards
from genrec_hub import demo_details as details
from genrec_hub import demo_pictures as pictures
from genrec_hub.baselines import TextNeighbours
from genrec_hub.catalog import Catalog
from genrec_hub.demo_compare import Column, agreement, comparison, nearest_texts
from genrec_hub.demo_downloads import as_csv
from genrec_hub.demo_learn import mask_picture, token_picture, tree_picture
from genrec_hub.demo_models import Lazy, default_models, labels
from genrec_hub.demo_panel import Answer, ask, department_choices, moved, shown, traced
from genrec_hub.demo_recommend import wanted
from genrec_hub.demo_requests import whole
from genrec_hub.demo_texts import model_card
from genrec_hub.pipeline import TASK, RecommendationPipeline
from genrec_hub.timing import clocked, stage

pytest_plugins = ["visitors"]

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


# ---------------------------------------------------------------- models


def test_labels_say_which_system_it_is() -> None:
    assert labels([SETS, TEXTS]) == {SETS: "SETRec", TEXTS: "IDGenRec"}
    assert labels(["runs/mine"]) == {"runs/mine": "runs/mine"}
    assert labels([SETS, "setrec-mine"]) == {SETS: SETS, "setrec-mine": "setrec-mine"}


def test_the_embedded_checkpoints_are_found() -> None:
    assert next(iter(default_models())) == SETS


def test_a_model_is_loaded_once_by_many_threads() -> None:
    made = []

    def load() -> object:
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    lazy, found = Lazy(load), []  # type: ignore[arg-type]
    threads = [threading.Thread(target=lambda: found.append(lazy())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert set(map(id, found)) == {id(made[0])}


# ---------------------------------------------------------------- what comes back, what was pressed


def test_what_a_visitor_comes_back_to() -> None:
    models = [SETS, TEXTS, "side-by-side"]
    fresh = wanted(None, "", models)
    assert fresh == {"history": "", "model": SETS, "k": 10, "exclude_seen": True, "department": ""}
    kept = {"history": "tea", "model": TEXTS, "k": 5, "exclude_seen": False, "department": "Pets"}
    assert wanted(kept, "?__theme=dark", models) == kept
    assert wanted(kept, "#history=a%0Ab&model=side-by-side", models) == {**fresh, "history": "a\nb", "model": "side-by-side"}
    assert wanted(kept, "?history=caf%C3%A9", models)["history"] == "caf\xe9"
    broken = {"history": 3, "model": "x", "k": "many", "exclude_seen": "no", "department": None, "more": 1}
    assert wanted(broken, "", models) == {**fresh, "history": "3"}
    assert wanted("junk", "#history=" + "x" * 500_000, models)["history"] == "x" * 20_000


def test_chips_change_the_lines() -> None:
    lines = ["a", "b", "c"]
    assert moved(lines, {"do": "earlier", "line": 1}) == ["b", "a", "c"]
    assert moved(lines, {"do": "later", "line": 1}) == ["a", "c", "b"]
    assert moved(lines, {"do": "earlier", "line": 0}) == lines
    assert moved(lines, {"do": "later", "line": 2}) == lines
    assert moved(lines, {"do": "remove", "line": 2}) == ["a", "b"]
    assert moved(lines, {"do": "use", "line": 0, "title": "z"}) == ["z", "b", "c"]
    assert moved(lines, {"do": "add", "title": "z"}) == ["a", "b", "c", "z"]
    assert moved(lines, {"do": "remove", "line": 7}) == lines
    assert moved(lines, {"do": "format", "line": "0"}) == lines
    assert lines == ["a", "b", "c"]


def test_stages_are_heard_only_by_who_listens() -> None:
    with stage("silent"):
        pass
    with clocked() as times:
        with stage("one"):
            time.sleep(0.01)
        with stage("two"), clocked() as inner, stage("three"):
            pass
        thread = threading.Thread(target=lambda: stage("elsewhere").__enter__())
        thread.start()
        thread.join()
    assert list(times) == ["one", "two"]
    assert times["one"] >= 0.01
    assert list(inner) == ["three"]


def test_a_model_card_is_read_without_its_metadata() -> None:
    assert model_card("---\ntags: [a]\n---\n\n# Name\n\n```\n# code\n```\n") == "### Name\n\n```\n# code\n```"
    assert model_card("# Name") == "### Name"
    assert model_card("a\n\n![bars](figures/results.svg)\n\nb ![x](https://y)\n") == "a\n\nb ![x](https://y)"


def test_the_duplicate_button_is_there_on_a_space_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def button() -> gr.DuplicateButton:
        app = demo.build_demo({SETS: FakeRecommender})  # type: ignore[dict-item]
        return next(block for block in app.blocks.values() if isinstance(block, gr.DuplicateButton))

    assert not button().visible
    monkeypatch.setattr(demo, "get_space", lambda: "org/app")
    assert button().visible


def test_what_the_browser_keeps_has_a_fixed_key() -> None:
    """Both are random by default, and a history would be lost whenever the server starts anew."""
    app = demo.build_demo({SETS: FakeRecommender})  # type: ignore[dict-item]
    [kept] = [block for block in app.blocks.values() if isinstance(block, gr.BrowserState)]
    assert (kept.storage_key, kept.secret) == ("genrec_hub", "genrec_hub")


# ---------------------------------------------------------------- cards


@pytest.fixture(scope="module")
def sets() -> FakeRecommender:
    return FakeRecommender(shop())


@pytest.fixture(scope="module")
def texts() -> FakeWriter:
    return FakeWriter(shop())


def answer(pipe: FakeRecommender, history: str = "zebra lamp traps\nespresso machine", k: int = 8) -> Answer:
    return ask("name", pipe, history, k, False, None)


def test_everything_is_escaped(sets: FakeRecommender, texts: FakeWriter) -> None:
    history = f"zebra lamp traps\n{ATTACK}"
    for pipe in (sets, texts):
        one = answer(pipe, history)
        assert one.recommendations[0]["item"]["title"] == ATTACK
        pages = [shown(one, ATTACK), traced(one, ATTACK), cards.understood(pipe.understand(history), pipe.catalog)]
        pages += [token_picture(one), tree_picture(one)] if pipe is texts else [token_picture(one)]
        pages += [cards.options([ATTACK], "x"), cards.suggestions([ATTACK]), cards.notice("error", ATTACK, ATTACK)]
        pages += [comparison([Column(ATTACK, [card["item"] for card in one.recommendations])] * 2)]
        for page in pages:
            assert "<script" not in page
            assert "<img" not in page
            assert escape(ATTACK)[:20] in page or "script" not in page


def test_new_items_and_shared_words_are_marked(sets: FakeRecommender, texts: FakeWriter) -> None:
    one = answer(sets)
    new = [card["rank"] for card in one.recommendations if not sets.trained_on[sets.catalog.row(card["item"]["item_id"])]]
    found = re.findall(r'Rank (\d+)"(?:(?!Rank).)*?new to the model', shown(one, ""))
    assert [int(rank) for rank in found] == new
    assert new
    marked = shown(answer(texts, "espresso machines"), "")
    assert "<mark>espresso</mark>" in marked
    assert "<mark>machine</mark>" in marked
    assert "Probability" in marked


def test_one_badge_does_where_all_items_are_new(sets: FakeRecommender) -> None:
    one = answer(sets)
    found = {card["item"]["item_id"] for card in one.recommendations}
    page = cards.results(one.recommendations, "note", fresh=found)
    assert page.count("gh-new") == page.count("all new to the model") == 1


def test_tokens_are_shown_against_an_average_item(sets: FakeRecommender, texts: FakeWriter) -> None:
    one = answer(sets)
    best, usual = one.recommendations[0], [0.25, 0.0, 0.0]
    surplus = [token["score"] - own for token, own in zip(best["identifier"]["tokens"], usual, strict=True)]
    page = cards.results([best], usual=usual)
    assert [int(share) for share in re.findall(r"<b>(-?\d+)%</b>", page)] == [
        round(100 * part / sum(map(abs, surplus))) for part in surplus
    ]
    assert f"Score {best['score']:.2f}, {best['score'] - 0.25:+.2f} over an average item" in page
    assert f'adds {surplus[0]:+.2f} over an average item"' in page
    written = answer(texts).recommendations[0]
    assert f"Probability of the identifier: {100 * np.exp(written['score']):.2g}%" in cards.results([written])
    shorter = {**written, "score": written["score"] / 2}
    assert f"Probability of a word piece of it, in the mean: {100 * np.exp(shorter['score']):.2g}%" in cards.results([shorter])
    assert cards.percent(1e-9) == "&lt;0.001%"


def test_details_show_beams_tokens_and_stages(sets: FakeRecommender, texts: FakeWriter) -> None:
    page = traced(answer(texts), "")
    assert "no item has it" in page
    assert page.count("<tr>") == 1 + 10 + 1
    page = traced(answer(sets), "")
    assert page.count("<details>") == 8
    page = details.stages({"read": 0.010, "generate": 0.030}, 0.050)
    assert "Time: 50 ms" in page
    assert [float(ms) for ms in re.findall(r"<b>([\d.]+) ms</b>", page)] == [10, 30, 10]


def test_the_comparison_says_what_lists_share() -> None:
    items = [{"item_id": str(n), "title": f"t{n}", "brand": "", "categories": ""} for n in range(5)]
    columns = [Column("A", items[:3]), Column("B", items[1:4]), Column("C", items[2:])]
    assert agreement(columns) == "Of their first ten, A and B share 2; A and C share 1; B and C share 2."
    page = comparison(columns)
    assert page.count("gh-shared") == 3
    assert page.count("only here") == 2
    assert "also B 2, C 1" in page


# ---------------------------------------------------------------- pictures


def test_the_mask_is_the_models(sets: FakeRecommender) -> None:
    from genrec_hub.set_attention import set_layout

    picture = mask_picture(answer(sets), 2)
    causal, mask = (parse(svg) for svg in re.findall(r"<svg.*?</svg>", picture, re.DOTALL))
    visible = set_layout(torch.ones(1, 2, dtype=torch.bool), 3, 1, 0, False).visible[0].numpy()
    size = len(visible)
    drawn = np.array([rect.get("class") != "gh-off" for rect in mask.iter(f"{SVG}rect")]).reshape(size, size)
    assert (drawn == visible).all()
    drawn = np.array([rect.get("class") != "gh-off" for rect in causal.iter(f"{SVG}rect")]).reshape(size, size)
    assert (drawn == np.tri(size, dtype=bool)).all()


def test_the_prefix_tree_writes_shared_beginnings_once() -> None:
    item = {"item_id": "1", "title": "A", "brand": "", "categories": "", "description": "", "price": "", "text": ""}
    found = [
        {"item": {**item, "title": title}, "score": 0.1, "rank": rank, "identifier": {"text": text}, "because": None}
        for rank, (title, text) in enumerate(
            [("A", "espresso machine steam"), ("B", "espresso machine beans"), ("C", "espresso"), ("D", "tea & cup")], 1
        )
    ]
    picture = parse(pictures.prefix_tree(found, {"machine"}))
    texts = ["".join(text.itertext()).strip() for text in picture.iter(f"{SVG}text")]
    assert sorted(texts) == sorted(["espresso", "3 · C", "machine", "steam", "1 · A", "beans", "2 · B", "tea & cup", "4 · D"])
    assert ["".join(span.itertext()).strip() for span in picture.iter(f"{SVG}tspan") if span.get("class")] == ["machine"]
    heights = [float(text.get("y")) for text in picture.iter(f"{SVG}text") if "\u00b7" in "".join(text.itertext())]
    assert len(set(heights)) == 4


def test_pictures_are_whole_svg(sets: FakeRecommender, texts: FakeWriter) -> None:
    for page in (token_picture(answer(sets)), tree_picture(answer(texts))):
        picture = parse(re.search(r"<svg.*?</svg>", page, re.DOTALL)[0])
        assert picture.get("aria-label")
        assert picture.get("role") == "img"


# ---------------------------------------------------------------- over a real, tiny model


@pytest.fixture(scope="module")
def real(tiny_setrec, processor) -> RecommendationPipeline:
    return RecommendationPipeline(model=tiny_setrec(), processor=processor, task=TASK)


def test_nearest_items_of_tokens(real: RecommendationPipeline) -> None:
    history = "Aurora shampoo\nsomething for the garden"
    ids = [card["item"]["item_id"] for card in real(history, top_k=3)]
    described = real.nearest(history, ids, 4)
    assert [entry["item_id"] for entry in described] == [None, *ids]
    model, features = real.model, real.processor.features
    with torch.inference_mode():
        generated = model(**real.processor([history])).tokens[0, 0]
        around = model.tokenize(features["semantic"])
        centre = around.mean(0)
        for entry in described:
            row = None if entry["item_id"] is None else real.catalog.row(entry["item_id"])
            for slot, token in enumerate(entry["tokens"]):
                asked = (generated if row is None else around[row])[slot] - centre[slot]
                cosines = torch.nn.functional.cosine_similarity(asked[None], around[:, slot] - centre[slot])
                order = [place for place in cosines.argsort(descending=True).tolist() if place != row][:4]
                assert [item["title"] for item in token["nearest"]] == [real.catalog[place].title for place in order]
                assert [item["similarity"] for item in token["nearest"]] == pytest.approx(cosines[order].tolist(), abs=1e-5)


def test_what_an_average_item_scores(real: RecommendationPipeline) -> None:
    history = "Aurora shampoo\nsomething for the garden"
    scores = torch.tensor([[token["score"] for token in card["identifier"]["tokens"]] for card in real(history, 60, exclude_seen=False)])
    assert len(scores) == 60
    assert real.usual(history) == pytest.approx(scores.mean(0).tolist(), abs=1e-5)


def test_a_prior_is_not_what_a_history_asks_for(tiny_setrec, processor) -> None:
    history, model = "Aurora shampoo\nsomething for the garden", tiny_setrec(prior=True)
    near = processor.nearest(model, history, [3])
    with torch.no_grad():
        model.prior += 100 * torch.randn_like(model.prior)
    assert [
        [item["title"] for item in token["nearest"]] for entry in processor.nearest(model, history, [3]) for token in entry["tokens"]
    ] == [[item["title"] for item in token["nearest"]] for entry in near for token in entry["tokens"]]


def test_an_answer_names_its_stages(real: RecommendationPipeline) -> None:
    one = ask("SETRec", real, "Aurora shampoo\nbread knife", 3, True, None)
    assert list(one.times) == ["read", "generate", "rank", "reasons", "labels"]
    assert sum(one.times.values()) <= one.seconds
    assert "generate the identifier" in traced(one, "")
    assert real.beams("Aurora shampoo") == []


def test_words_of_a_real_model(tiny_idgenrec, id_processor) -> None:
    pipe = RecommendationPipeline(model=tiny_idgenrec("qwen3", "t5"), processor=id_processor(), task=TASK)
    one = ask("IDGenRec", pipe, "Aurora shampoo\nsomething for the garden", 4, True, None)
    assert list(one.times) == ["read", "search", "reasons"]
    assert shown(one, "").count("gh-words") == len(one.recommendations) == 4
    assert "What the model considered" in traced(one, "")
    assert len(list(parse(re.search(r"<svg.*?</svg>", tree_picture(one), re.DOTALL)[0]).iter(f"{SVG}text"))) >= 8
    assert as_csv(pipe.identify()).count("\n") == 61


def test_what_a_model_was_trained_on(tiny_setrec, processor) -> None:
    cf, known = np.ones((60, 6), np.float32), np.arange(60) % 3 > 0
    fingerprint = processor.catalog.fingerprint
    assert not RecommendationPipeline(model=tiny_setrec(), processor=processor, task=TASK).trained_on.any()
    trained = RecommendationPipeline(
        model=tiny_setrec(cf_size=6, catalog_fingerprint=fingerprint), processor=processor.with_cf(cf, known), task=TASK
    )
    assert (trained.trained_on == known).all()
    elsewhere = trained.with_catalog(processor.catalog[:30])
    assert elsewhere.trained_on.tolist() == [False] * 30


def test_text_neighbours_are_the_baselines(real: RecommendationPipeline) -> None:
    rows, vectors = [3, 17, 8], real.processor.features["semantic"].numpy()
    history = "\n".join(real.catalog[row].title for row in rows)
    scores = TextNeighbours(vectors).scores([np.array(rows)], "soft")[0]
    scores[rows] = -torch.inf
    best = scores.topk(5).indices.tolist()
    assert [item["item_id"] for item in nearest_texts(real, history, 5)] == [real.catalog[row].item_id for row in best]
    assert nearest_texts(real, "words that nobody knows", 3)


def test_nothing_typed_is_cached_on_disk(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genrec_hub.demo_models import open_model

    monkeypatch.setenv("GENREC_CACHE", str(tmp_path))
    with torch.backends.mkldnn.flags(enabled=True):  # which a server does without, and other tests do not
        pipe = open_model(SETS)
        assert not torch.backends.mkldnn.enabled
    pipe("a secret that nobody else knows", top_k=1)
    pipe.with_catalog(Catalog.from_file(SHOP)[:3])("more of it", top_k=1)
    assert not list(tmp_path.rglob("*"))
    assert torch.backends.mkldnn.enabled


def test_the_first_answer_waits_for_no_library_it_does_not_need() -> None:
    code = """
import sys
from genrec_hub.demo_models import default_models
assert len(next(iter(default_models().values()))()("coffee\\nqwertzuiop")) == 10
print([name for name in ("sentence_transformers", "datasets", "faiss", "peft") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_late_answer_does_not_undo_a_choice_of_department(shop):
    name = shop.departments[0]
    assert department_choices(shop, name).constructor_args["value"] == name
    assert department_choices(shop, "nowhere").constructor_args["value"] == ""
    for there in ("", name):
        assert "value" not in department_choices(shop, there, shown=True).constructor_args
    assert department_choices(shop, "nowhere", shown=True).constructor_args["value"] == ""


@pytest.mark.parametrize("k", [float("inf"), float("nan"), 10**400, True, "3", None, [3]])
def test_a_number_of_results_that_is_none(k: object) -> None:
    with pytest.raises(gr.Error, match="give a whole number from 1 to 50"):
        whole(k)


def test_a_number_of_results() -> None:
    assert (whole(3), whole(3.0)) == (3, 3)
