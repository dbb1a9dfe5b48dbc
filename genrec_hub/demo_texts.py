"""The words on the demo's pages: example histories, help, what to copy to call the server, and what the app is."""

from typing import Final

PERSONAS: Final = {
    "Curly hair": "argan oil shampoo\nionic hair dryer with diffuser\nsomething against frizz",
    "Home barista": "espresso machine with steam wand\ncoffee grinder\nespresso beans",
    "First camping trip": "two-person tent\nwarm sleeping bag\ncompact gas stove",
    "Game night": "strategy board game\nescape game\nlinen playing cards",
    "New puppy": "puppy food\npadded harness\nsnuffle mat",
    "Bread baker": "banneton proofing basket\nstrong white flour\nbread knife",
}

UPLOAD_HELP: Final = """### Recommend from your own items
Upload a table with the columns `item_id` and `title`; `brand`, `categories`, `description` and `price` help where you have them.
The model has never seen your items: it reads their words.

CSV, TSV, JSONL or Parquet, up to {rows:,} rows and {megabytes} MB. The file is deleted as soon as it is read, and
the index lives in memory for this browser session only.
"""

ABOUT: Final = """### What this is
`genrec_hub` brings generative recommenders to the Hugging Face ecosystem. This page runs **SETRec**: an item is a *set* of
continuous, order-agnostic tokens, and the model generates all tokens of the next item in one pass. The coloured chips on a card are those
tokens: a label in words, and the token's share of the score. The shares of a card add up to its score.

*Because you had …* names the line of your history whose absence lowers the score most, with its share.

### Limits
- The sample shop is invented: its brands, titles and prices are ours. The model was trained on real purchases of other shops
  and has never seen these items.
- It knows items by their words only. An item with an empty or cryptic title is placed poorly, and so is text in languages its
  encoder knows little of.
- A history of one or two lines says little; a score compares items within one answer and means nothing across answers.
- Labels of tokens are the words most typical of the items near to the token: a reading aid, not what the model computes with.

### Privacy
Nothing you type or upload is stored. Uploads are deleted once read; their index is dropped with the session.

### Licences
Code and the sample shop: Apache-2.0. The weights were trained on public research data sets and carry their terms (see the model card).
SETRec follows *Order-agnostic Identifier for Large Language Model-based
Generative Recommendation* (Lin et al., 2025).
The text encoder is all-MiniLM-L6-v2 (Apache-2.0).
"""


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
