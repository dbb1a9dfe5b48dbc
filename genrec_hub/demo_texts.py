"""The words on the demo's pages: example histories, help, what to copy to call the server, and what the app is."""

import re
from typing import Final

FIGURE: Final = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", re.MULTILINE)
"""A picture beside a model card, which no page of the app can reach."""

PERSONAS: Final = {
    "Curly hair": "argan oil shampoo\nionic hair dryer with diffuser\nsomething against frizz",
    "Home barista": "espresso machine with steam wand\ncoffee grinder\nespresso beans",
    "First camping trip": "two-person tent\nwarm sleeping bag\ncompact gas stove",
    "Game night": "strategy board game\nescape game\nlinen playing cards",
    "New puppy": "puppy food\npadded harness\nsnuffle mat",
    "Bread baker": "banneton proofing basket\nstrong white flour\nbread knife",
}

MODEL_HELP: Final = "SETRec describes an item by a set of tokens, IDGenRec by a few words."

UPLOAD_HELP: Final = """### Recommend from your own items
Upload a table of items. A title each is enough; brand, categories, description and price help where you have them.
The model has never seen your items: it reads their words.

CSV, TSV, JSONL or Parquet, up to {rows:,} rows and {megabytes} MB. Nothing leaves this machine: the file is deleted as soon as it
is read, and
the index lives in memory for this browser session only. A thousand items take some seconds.
"""

COMPARE_HELP: Final = """### The same history, several systems
What stands in every list is marked. *text-kNN* was never trained: it only knows which texts are alike. Where the two systems
differ from it, it is by how they read a
history, and by what they learnt from the customers of other shops."""

SUBTITLES: Final = {
    "SETRec": "generates a set of tokens, all at once",
    "IDGenRec": "writes the words of an identifier, one after the other",
    "text-kNN": "no training: the most similar texts",
}

LEARN_SETS: Final = """### An item as a set
A generative recommender does not score items one by one: it **generates an identifier** of the next item, and the identifier
leads to the item.
In **SETRec** that identifier is a *set* of continuous tokens. No token has a word of its own, so each is shown with the words
most typical of the items
that lie nearest to it."""

LEARN_MASK: Final = """### Why the order does not matter
Letters are the items of a history, numbers their tokens. A row may look at the coloured columns. The mask is drawn from the one
that the model runs with."""

LEARN_IDS: Final = """### An item as words
In **IDGenRec** an identifier is a short text, written from the item's own description. The recommender writes the next one word
by word, and may only write what
some item's identifier continues with: it walks a **prefix tree**, so it never invents an item."""

LEARN_TREE: Final = "The identifiers of your results as a tree; words shared with your history are marked."

API_HELP: Final = """The same answers for programs and agents: the endpoints, and tools, `recommend`, `search` and `identify`; typed JSON,
one clear sentence on bad input."""

ABOUT: Final = """### What this is
`genrec_hub` brings generative recommenders to the Hugging Face ecosystem.

**SETRec**: an item is a *set* of continuous, order-agnostic tokens, and the model generates all tokens of the next item in one
pass. The coloured chips on a card are those
tokens: a label in words, and the token's share of what the item scores above an average item of the catalogue. The number beside
the bar is that surplus; point at it to see the score itself.

**IDGenRec**: an item is a short *textual identifier*, and the model writes the next one under a prefix tree of those that exist.
The number beside the bar is the probability of the text, by word piece where the model divides by the length.

*Because you had …* names the line of your history whose absence lowers the score most, with its share.

### Limits
- The sample shop is invented: its brands, titles and prices are ours. The models were trained on real purchases of other shops
  and have never seen these items; that is what *new to the model* says.
- They know items by their words only. An item with an empty or cryptic title is placed poorly, and so is text in languages that the
  text encoder knows little of.
- A history of one or two lines says little; a score compares items within one answer and means nothing across answers.
- Labels of tokens are the words most typical of the items near to the token: a reading aid, not what the model computes with.

### Protocol
Numbers on the model cards are measured leave-one-out in time order, against the whole catalogue, seen items excluded, beside
baselines that need no training.
Nothing at or after the item to be predicted reaches an input.

### Privacy
Nothing you type or upload is stored on this server. Uploads are deleted once read; their index is dropped with the session. Your
last history is kept by your own
browser, so that a refresh brings it back; a link to a history carries it after the `#`, which browsers do not send to servers.

### Licences
Code and the sample shop: Apache-2.0. The weights were trained on public research data sets and carry their terms (see the model cards).
SETRec follows *Order-agnostic Identifier for Large Language Model-based Generative Recommendation* (Lin et al., 2025), IDGenRec follows
*IDGenRec: LLM-RecSys Alignment with Textual ID Learning* (Tan et al., 2024). The text encoder is all-MiniLM-L6-v2 (Apache-2.0).
"""


def model_card(text: str) -> str:
    """A model card as it is read here: without its metadata and its figure, headings one step smaller."""
    body = text.split("\n---\n", 1)[-1] if text.startswith("---\n") else text
    body = FIGURE.sub("", body)
    fenced, lines = False, []
    for line in body.strip().splitlines():
        fenced ^= line.startswith("```")
        lines.append(f"##{line}" if line.startswith("#") and not fenced else line)
    return "\n".join(lines)


def snippets(url: str, model: str) -> tuple[str, str, str, str]:
    """Returns what to copy to call a server at `url` and its `model`: Python client, curl, the local pipeline, MCP configuration."""
    base = url.rstrip("/")
    python = f'''from gradio_client import Client, handle_file   # pip install gradio_client

client = Client("{base}/")
answer = client.predict("argan oil shampoo\\nionic hair dryer", "{model}", 5, True, api_name="/recommend")
for card in answer["recommendations"]:
    print(card["rank"], card["item"]["title"], [token["label"] for token in card["identifier"]["tokens"]])

client.predict("espresso", 3, api_name="/search")
client.predict(handle_file("items.csv"), "{model}", api_name="/identify")'''
    curl = f"""EVENT=$(curl -s {base}/gradio_api/call/recommend -H "Content-Type: application/json" \\
  -d '{{"data": ["argan oil shampoo\\nionic hair dryer", "{model}", 5, true]}}' | cut -d '"' -f 4)
curl -sN {base}/gradio_api/call/recommend/$EVENT"""
    local = f'''import genrec_hub

recommend = genrec_hub.load("{model}")
recommend(["argan oil shampoo", "ionic hair dryer"], top_k=5)

mine = recommend.with_catalog(genrec_hub.Catalog.from_file("items.csv"))   # zero-shot on your own items
mine(["a title of yours", "or any words"])'''
    mcp = f'{{\n  "mcpServers": {{\n    "genrec_hub": {{ "url": "{base}/gradio_api/mcp/" }}\n  }}\n}}'
    return python, curl, local, mcp
