"""Invented case files of thousands of tokens, whose summaries name people from their beginning, middle and end.

All names, cases and sentences were made up for this repository. Who plays a part in a case is said in one sentence; all around it is
procedure in which people come up, some of them by chance those. `case(generator, sentences)` gives one as LexSumm has them:
{"input", "output"}, and "facts". samples/ has files of them, and the embedded model that is to read long ones begins with short ones.
"""

SYSTEM = "You are a legal assistant. Summarise the document."
PARTS = {  # who a summary has to name: where in the document it is said, and how
    "claimant": ("beginning", ("The complaint was brought by claimant {}.", "It was claimant {} who went to court.")),
    "judge": ("beginning", ("The case was given to judge {}.", "Over the hearings sat judge {}.")),
    "expert": ("middle", ("The court appointed expert {} to look at the machine.", "A written opinion came from expert {}.")),
    "witness": ("middle", ("Both parties asked to hear witness {} again.", "Nobody was there but witness {} that day.")),
    "trustee": ("end", ("The money is held by trustee {}.", "The keys were handed over to trustee {}.")),
    "clerk": ("end", ("All of this was written down by clerk {}.", "The files were closed by clerk {}.")),
}
SUMMARY = (
    "Brought by claimant {claimant} before judge {judge}. Evidence: expert {expert} and witness {witness}. "
    "Outcome: trustee {trustee}, clerk {clerk}."
)
PLACES = {"beginning": 0.05, "middle": 0.5, "end": 0.95}  # of the document, give or take a twentieth
NAMES = [
    first + last
    for first in ("Bro", "Cov", "Dru", "Fes", "Gru", "Hob", "Jov", "Kem", "Lup", "Mib", "Nul", "Pov")
    for last in ("bek", "dorn", "gix", "hask", "kel", "lurm", "mond", "nisk", "rast", "teg", "vond", "wick")
]
SIDES = ("plaintiff", "defendant", "insurer", "carrier")
PAPERS = ("the invoice", "the contract", "the survey", "the ledger", "the letter", "the permit", "the lease", "the report")
ACTS = ("objected to", "relied on", "asked for", "referred to", "moved to strike", "filed", "withdrew", "submitted")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
PROCEDURE = (
    *("Counsel for the {side} {act} {paper}.", "On {day} {month} the {side} {act} {paper}.", "{name} was heard on {paper}."),
    *("A copy of {paper} was sent to {name}.", "The court took note of {paper} and adjourned until {month}."),
    *("The {side} had {amount} dollars in the account.", "The hearing of {day} {month} went on without the {side}."),
    *("No party asked {name} about {paper}.", "Pages {day} to {amount} of {paper} were read into the record."),
    *("The motion of the {side} was denied in {month}.", "There was no answer from {name} before {month}."),
)


def procedure(generator):
    """One sentence in which nothing happens that a summary names."""
    return generator.choice(PROCEDURE).format(
        side=generator.choice(SIDES), act=generator.choice(ACTS), paper=generator.choice(PAPERS), day=generator.randint(1, 28),
        month=generator.choice(MONTHS), name=generator.choice(NAMES), amount=generator.randint(100, 999),
    )  # fmt: skip


def case(generator, sentences, spread=0.05):
    """A case with so many sentences of procedure and one for each part: {"input": str, "output": str, "facts": {place: [names]}}.

    spread: share of the document by which a part may stand before or after its place.
    """
    names = dict(zip(PARTS, generator.sample(NAMES, len(PARTS)), strict=True))
    lines = [procedure(generator) for _ in range(sentences)]
    for part in reversed(PARTS):
        place, wordings = PARTS[part]
        at = min(1.0, max(0.0, PLACES[place] + generator.uniform(-spread, spread)))
        lines.insert(round(at * sentences), generator.choice(wordings).format(names[part]))
    paragraphs = []
    while lines:
        size = generator.randint(4, 9)
        paragraphs.append(" ".join(lines[:size]))
        del lines[:size]
    facts = {place: [names[part] for part in PARTS if PARTS[part][0] == place] for place in PLACES}
    return {"input": "\n\n".join(paragraphs), "output": SUMMARY.format(**names), "facts": facts}


def messages(case):
    """A case as a conversation: the document is the question, the summary the answer."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": case["input"]},
        {"role": "assistant", "content": case["output"]},
    ]
