"""Worked examples that show a model the form of what it is to write. None is from a collection that is evaluated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A document as a prompt shows it, its docid, and one query of each kind."""

    document: str
    docid: str
    question: str
    keywords: str
    claim: str
    request: str


EXAMPLES = (
    Example(
        "Title: Photosynthesis\nPlants, algae and some bacteria turn light into chemical energy. Chlorophyll absorbs "
        "the light, water is split, and carbon dioxide becomes sugar.",
        docid="photosynthesis plants light energy chlorophyll sugar",
        question="how do plants make sugar from sunlight",
        keywords="chlorophyll light absorption sugar",
        claim="Plants need light to turn carbon dioxide into sugar.",
        request="Explain to my class why leaves need the sun.",
    ),
    Example(
        "Title: merge_sort(items)\nSort a list by splitting it into halves, sorting each half and merging the two. "
        "Stable, needs O(n log n) comparisons.",
        docid="sorting list merge sort stable halves",
        question="which sort keeps the order of equal items",
        keywords="stable list sorting n log n",
        claim="Merge sort does not change the order of equal items.",
        request="Sort my customers by name, and leave those with the same name as they are.",
    ),
    Example(
        "Title: Vitamin D and falls in older adults\nIn 1,204 adults over 70, two years of 800 IU vitamin D a day "
        "lowered the rate of falls by 12 percent against placebo. Fractures did not differ.",
        docid="medicine older adults falls vitamin d supplement trial",
        question="does vitamin D prevent falls in old people",
        keywords="vitamin d supplementation falls elderly",
        claim="Vitamin D supplements reduce fractures in older adults.",
        request="My grandmother keeps falling; find out whether vitamins would help her.",
    ),
    Example(
        "name: invoice-reader\ndescription: Reads scanned invoices and returns supplier, date, items and total as "
        "JSON. Supports PDF, PNG and TIFF in twelve languages.",
        docid="document recognition invoices scanned pdf extraction json",
        question="what can extract the total from a scanned bill",
        keywords="invoice ocr json",
        claim="Totals can be read from scanned invoices without typing.",
        request="I have a folder of photographed bills and want supplier and amount of each in a spreadsheet.",
    ),
    Example(
        "Title: Cancelling a subscription\nOpen Account, then Billing, and choose Cancel. You keep access until the "
        "period that you have paid for ends. Refunds are given within 14 days of the first payment.",
        docid="account billing subscription cancel refund period",
        question="can I get my money back after I cancel",
        keywords="cancel subscription refund days",
        claim="Access ends at once when a subscription is cancelled.",
        request="Stop my monthly payments and tell me how long I can still use it.",
    ),
    Example(
        "Title: Siege of Constantinople (1453)\nAfter 53 days the army of Mehmed II broke through the walls on 29 May "
        "1453. The city became the capital of the Ottoman Empire.",
        docid="history ottoman empire constantinople siege 1453 mehmed",
        question="how long did the siege of Constantinople last",
        keywords="fall of constantinople 1453",
        claim="Constantinople fell to Mehmed II in May 1453.",
        request="Tell me who conquered the capital of the Byzantines and when.",
    ),
    Example(
        "team | season | played | won | points\nNorth End | 1889 | 22 | 18 | 40\nRovers | 1889 | 22 | 12 | 27",
        docid="football league table season 1889 north end",
        question="how many games did North End win in 1889",
        keywords="football table 1889 points",
        claim="Rovers won twelve games in the season of 1889.",
        request="Find out which team finished first in 1889.",
    ),
    Example(
        "Title: Sourdough without a scale\nMix one cup of starter with three cups of flour and one of water. Fold "
        "every half hour, let it rise overnight in the fridge, and bake in a hot pot.",
        docid="baking bread sourdough recipe cups overnight",
        question="how can I bake sourdough if I have no scale",
        keywords="sourdough recipe cups",
        claim="Sourdough can rise overnight in the fridge.",
        request="Give me a bread recipe for which I need not weigh anything.",
    ),
)
