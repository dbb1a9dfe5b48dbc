"""P5-SemID: codes that are an item's category path, from the widest on.

Source: Hua et al., How to Index Item IDs for Recommendation Foundation Models, SIGIR-AP 2023 (arXiv 2305.06569) section 4.4: a token for
each category of the path, then a number that tells the items of one path apart.
Differs: categories of the same name at different depths are different tokens; of an item in several places the first path counts; tags
that are no path stand in the order of how many items have them; items without categories share the path "none".
"""

from collections import Counter
from collections.abc import Iterable

from genrec_hub.catalog import Item
from genrec_hub.text import departments

from .codes import Code, numbered


def p5_semid(items: Iterable[Item]) -> list[Code]:
    """Gives every item its code."""
    told = [item.categories.partition(";")[0] for item in items]
    common = Counter(name for text in told for name in departments(text))
    ordered = [departments(text) if ">" in text else sorted(departments(text), key=lambda name: (-common[name], name)) for text in told]
    return numbered([_path(names) for names in ordered])


def _path(names: list[str]) -> Code:
    """A path as tokens without spaces."""
    return tuple(f"{depth}:{'_'.join(name.split())}" for depth, name in enumerate(names)) or ("none",)
