"""Synthetic data generator for the tiny DeepSeek-V3 demo model.  All text is made here; no data set is used.

sample(rng, split) -> dict(task, key, messages | prompt, answer, check)
An example whose key hashes to 0 (mod HOLD) is held out: it is never used for training.
"""

import json
import random
import zlib
import datetime
from glossary import GLOSSARY, PHRASINGS

HOLD = 40
NAMES = "Mia Noah Ada Leo Zoe Ben Eva Max Ivy Sam Lena Omar Nina Paul Rosa Hugo Anna Karl Maya Finn Clara Theo Ella Ivan Sara Jonas Lucy Amir Greta Felix Tara Oscar Julia Ravi Alma Erik Nora Tom Vera Luis Emma Kofi Yuki Marta Ali Dana Pedro Wei Ingrid Bruno".split()
CITIES = "Oslo Paris Lima Rome Cairo Tokyo Delhi Quito Berlin Madrid Vienna Dublin Prague Athens Lisbon Warsaw Nairobi Sydney Boston Denver Toronto Geneva Kyoto Milan Accra Hanoi Bogota Helsinki Riga Porto".split()
COLORS = "red blue green yellow purple orange black white brown pink grey silver".split()
FRUITS = "apple banana cherry grape lemon mango peach pear plum fig kiwi melon orange papaya lime apricot".split()
ANIMALS = (
    "cat dog fox owl bear wolf horse rabbit tiger lion eagle frog mouse duck goat sheep otter whale crow deer".split()
)
JOBS = "baker doctor teacher pilot farmer painter singer driver nurse cook writer engineer gardener sailor tailor lawyer".split()
OBJECTS = "key lamp book map coin ring box cup hat clock bell rope drum mirror letter pen bag chair table candle basket bottle ladder hammer".split()
PLACES = "garden forest market library harbor castle river village tower bridge kitchen school cave meadow station island museum attic cellar square".split()
FOODS = "bread soup cheese rice pasta salad cake honey butter stew noodles pancakes".split()
WORDS = (
    "able acid also area army away baby back ball bank base bell bird blue boat body bone book born both bowl bread brick bridge bright brush build calm camp card care cart chain chalk chest child circle city class clay clean clear climb cloud coast coat cold color cook cool corn cotton count cream cross crowd cup dance dark dawn deep desk door draw dream dress drink drive drum dry dust early earth east easy edge empty engine evening eye face fair fall farm fast feather fence field fire fish flag flame flat floor flower fly fog food forest fork fresh friend front fruit garden gate gift glass gold good grain grass green ground group grow guest hall hand happy harbor hard hat hay heart heavy hill hold home honey hope horse hour house ice idea iron island jacket jar job join jump keep kind king kite knee knife lake lamp land large late leaf left letter light line list long loud low lunch magic map mark market match meal metal milk mind mirror moon morning mountain mouth music nail name near neck nest night noise north note number ocean oil old open orange oven page paint pair paper park path peace pencil piece pillow pine place plain plan plant plate play point pond pool potato queen quick quiet rain rest rice ring river road rock roof room root rope round rule sail salt sand school sea seat seed shade shape sharp sheep shelf ship shoe shop short silk silver sing sister sky sleep slow small smoke snow soap soft soil song soup south space spoon spring square stair star steel stone storm story street strong sugar summer sun sweet swim table tail tall tea tent thick thin thread tool tooth top tower town track train tree trip trunk valley voice wagon walk wall warm wash watch water wave week west wheel white wild wind window wing winter wire wise wood wool word work world yard year young zebra"
).split()
SORTW = [w for i, w in enumerate(WORDS) if i % 2 == 0][:160]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
CAPITALS = {
    "France": "Paris",
    "Norway": "Oslo",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "India": "New Delhi",
    "Kenya": "Nairobi",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Portugal": "Lisbon",
    "Poland": "Warsaw",
    "Ireland": "Dublin",
    "Canada": "Ottawa",
    "Brazil": "Brasilia",
    "China": "Beijing",
    "Ghana": "Accra",
    "Vietnam": "Hanoi",
    "Chile": "Santiago",
    "Cuba": "Havana",
    "Finland": "Helsinki",
    "Sweden": "Stockholm",
    "Denmark": "Copenhagen",
    "Latvia": "Riga",
    "Hungary": "Budapest",
    "Turkey": "Ankara",
    "Mexico": "Mexico City",
    "Thailand": "Bangkok",
    "Belgium": "Brussels",
    "Croatia": "Zagreb",
    "Morocco": "Rabat",
    "Colombia": "Bogota",
    "Ecuador": "Quito",
    "Iceland": "Reykjavik",
    "Nepal": "Kathmandu",
    "Switzerland": "Bern",
    "Australia": "Canberra",
    "the United States": "Washington, D.C.",
}


def held(key):
    return zlib.crc32(key.encode()) % HOLD == 0


def chat(task, key, user, answer, system=None, history=(), check="exact"):
    m = []
    if system:
        m.append({"role": "system", "content": system})
    m += list(history)
    m.append({"role": "user", "content": user})
    return {"task": task, "key": f"{task}|{key}", "messages": m, "answer": answer, "check": check}


def inner(r, fns):  # a sub-task inside another one: never a held-out example
    while True:
        e = r.choice(fns)(r)
        if e["key"].endswith("always") or not held(e["key"]):
            return e


def num(r):
    d = r.choice((1, 2, 2, 3, 3, 3))
    return r.randrange(10 ** (d - 1) if d > 1 else 0, 10**d)


def add(r):
    a, b = num(r), num(r)
    q = r.choice(
        [
            "What is {a} + {b}?",
            "{a} + {b} = ?",
            "Compute {a} + {b}.",
            "What is {a} plus {b}?",
            "Add {a} and {b}.",
            "Please calculate {a} + {b}.",
            "{a}+{b}",
            "How much is {a} + {b}?",
        ]
    )
    return chat("add", f"{min(a,b)},{max(a,b)}", q.format(a=a, b=b), f"{a} + {b} = {a+b}")


def sub(r):
    a, b = num(r), num(r)
    if a < b and r.random() < 0.85:
        a, b = b, a
    q = r.choice(
        [
            "What is {a} - {b}?",
            "{a} - {b} = ?",
            "Compute {a} - {b}.",
            "What is {a} minus {b}?",
            "Subtract {b} from {a}.",
            "Please calculate {a} - {b}.",
            "{a}-{b}",
            "How much is {a} - {b}?",
        ]
    )
    return chat("sub", f"{a},{b}", q.format(a=a, b=b), f"{a} - {b} = {a-b}")


def compare(r):
    n = r.choice((2, 2, 3, 4))
    base = num(r)
    xs = list(
        dict.fromkeys(
            [base] + [max(0, base + r.randrange(-30, 31)) if r.random() < 0.5 else num(r) for _ in range(n - 1)]
        )
    )
    if len(xs) < 2:
        xs.append(xs[0] + 7)
    r.shuffle(xs)
    big = r.random() < 0.5
    s = ", ".join(map(str, xs[:-1])) + (" or " if len(xs) == 2 else ", or ") + str(xs[-1])
    w = r.choice(["larger", "bigger", "greater"]) if big else "smaller"
    if len(xs) > 2:
        w = {"larger": "largest", "bigger": "biggest", "greater": "greatest", "smaller": "smallest"}[w]
    q = r.choice(
        [
            "Which is {w}: {s}?",
            "Which number is {w}, {s}?",
            "What is the {w} number: {s}?" if len(xs) > 2 else "Which one is {w}: {s}?",
        ]
    )
    return chat("compare", f"{w}{xs}", q.format(w=w, s=s), f"The {w} number is {max(xs) if big else min(xs)}.")


def sort_(r):
    if r.random() < 0.5:
        xs = r.sample(SORTW, r.randrange(3, 7))
        ys = sorted(xs)
        desc = False
        q = r.choice(
            [
                "Sort these words alphabetically: {s}",
                "Put these words in alphabetical order: {s}",
                "Sort alphabetically: {s}",
            ]
        )
    else:
        xs = [num(r) for _ in range(r.randrange(3, 7))]
        desc = r.random() < 0.4
        ys = sorted(xs, reverse=desc)
        q = r.choice(
            ["Sort these numbers from largest to smallest: {s}", "Sort in descending order: {s}"]
            if desc
            else [
                "Sort these numbers: {s}",
                "Sort these numbers from smallest to largest: {s}",
                "Sort in ascending order: {s}",
            ]
        )
    xs = list(map(str, xs))
    ys = list(map(str, ys))
    return chat("sort", f"{desc}{xs}", q.format(s=", ".join(xs)), ", ".join(ys))


def reverse(r):
    xs = r.sample(WORDS, r.randrange(3, 9)) if r.random() < 0.8 else [str(num(r)) for _ in range(r.randrange(3, 8))]
    q = r.choice(
        [
            "Reverse this list: {s}",
            "Write these in reverse order: {s}",
            "Reverse the order of these words: {s}",
            "List these backwards: {s}",
        ]
    )
    return chat("reverse", str(xs), q.format(s=", ".join(xs)), ", ".join(xs[::-1]))


def count(r):
    if r.random() < 0.5:
        xs = r.sample(WORDS, r.randrange(2, 11))
        q = r.choice(
            ["How many words are in this list: {s}?", "Count the words: {s}", "How many items are there: {s}?"]
        )
        return chat("count", str(xs), q.format(s=", ".join(xs)), f"There are {len(xs)}.")
    pool = r.sample(FRUITS, 3)
    xs = [r.choice(pool) for _ in range(r.randrange(3, 10))]
    w = r.choice(pool)
    q = r.choice(['How many times does "{w}" appear in: {s}?', "Count how often {w} appears: {s}"])
    return chat(
        "count",
        w + str(xs),
        q.format(w=w, s=", ".join(xs)),
        f"The word \"{w}\" appears {xs.count(w)} time{'' if xs.count(w)==1 else 's'}.",
    )


def person(r, name=None):
    return {
        "name": name or r.choice(NAMES),
        "age": r.randrange(18, 90),
        "city": r.choice(CITIES),
        "job": r.choice(JOBS),
        "color": r.choice(COLORS),
        "pet": r.choice(ANIMALS),
        "fruit": r.choice(FRUITS),
    }


def lookup(r):
    n = r.randrange(2, 7)
    cols = ["name"] + r.sample(["age", "city", "job", "color", "pet", "fruit"], r.randrange(2, 4))
    ps = [person(r, nm) for nm in r.sample(NAMES, n)]
    p = r.choice(ps)
    c = r.choice(cols[1:])
    if r.random() < 0.5:
        t = "\n".join(
            ["| " + " | ".join(cols) + " |", "|" + "---|" * len(cols)]
            + ["| " + " | ".join(str(q[k]) for k in cols) + " |" for q in ps]
        )
        intro = r.choice(["Here is a table:\n", "Use this table:\n", ""])
    else:
        t = json.dumps([{k: q[k] for k in cols} for q in ps])
        intro = r.choice(["Here is some JSON:\n", "Given this JSON:\n", ""])
    q = r.choice(["What is the {c} of {n}?", "What is {n}'s {c}?", "Look up the {c} of {n}."])
    ans = f"The {c} of {p['name']} is {p[c]}."
    if r.random() < 0.25:
        vals = [x[c] for x in ps]
        if vals.count(p[c]) == 1:
            q = f"Who has the {c} {p[c]}?"
            ans = f"{p['name']} has the {c} {p[c]}."
    return chat("lookup", t + q + p["name"] + c, f"{intro}{t}\n{q.format(c=c, n=p['name'])}", ans)


def tojson(r):
    p = person(r)
    ks = ["name"] + r.sample(["age", "city", "job", "color", "pet", "fruit"], r.randrange(1, 5))
    if r.random() < 0.3:
        r.shuffle(ks)
    facts = r.choice(
        [
            ", ".join(f"{k} is {p[k]}" for k in ks),
            "; ".join(f"{k}: {p[k]}" for k in ks),
            ", ".join(f"the {k} is {p[k]}" for k in ks),
        ]
    )
    q = r.choice(
        [
            "Write this as JSON: {f}.",
            "Convert to JSON: {f}.",
            "Format these facts as a JSON object: {f}.",
            "Turn this into JSON: {f}.",
        ]
    )
    return chat("json", facts, q.format(f=facts), json.dumps({k: p[k] for k in ks}))


def filler(r):
    n, n2, o, pl, pl2, a, c, f, d = (
        r.choice(NAMES),
        r.choice(NAMES),
        r.choice(OBJECTS),
        r.choice(PLACES),
        r.choice(PLACES),
        r.choice(ANIMALS),
        r.choice(COLORS),
        r.choice(FOODS),
        r.choice(DAYS),
    )
    return r.choice(
        [
            f"{n} walked from the {pl} to the {pl2} and saw a {c} {a}.",
            f"On {d}, {n} and {n2} shared some {f} near the {pl}.",
            f"The {c} {o} was left in the {pl} for a long time.",
            f"A {a} slept beside the {o} while the rain fell on the {pl}.",
            f"{n} asked {n2} about the {o}, but nobody knew the answer.",
            f"The grass is {c}, the sky is {r.choice(COLORS)}, and the {pl} is quiet.",
            f"Every {d} the {r.choice(JOBS)} sells {f} at the {pl}.",
            f"There was a {a} in the {pl}, and there was another one in the {pl2}.",
        ]
    )


def passkey(r, lo=30, hi=200):
    target = r.randrange(lo, hi)  # words of filler
    s, n = [], 0
    while n < target:
        x = filler(r)
        s.append(x)
        n += x.count(" ") + 1
    if r.random() < 0.5:
        k = str(r.randrange(10000, 100000))
        s.insert(
            r.randrange(len(s) + 1),
            r.choice(
                [f"The pass key is {k}. Remember it.", f"Remember this: the pass key is {k}.", f"The pass key is {k}."]
            ),
        )
        q, ans = (
            r.choice(["What is the pass key?", "What was the pass key?", "Tell me the pass key."]),
            f"The pass key is {k}.",
        )
    else:
        m = r.randrange(2, 5)
        ps = r.sample(PLACES, m)
        ks = [str(r.randrange(1000, 10000)) for _ in ps]
        for p, k in zip(ps, ks):
            s.insert(r.randrange(len(s) + 1), f"The code of the {p} is {k}.")
        i = r.randrange(m)
        q, ans = f"What is the code of the {ps[i]}?", f"The code of the {ps[i]} is {ks[i]}."
    t = " ".join(s)
    pre = r.choice(["Read the text and answer the question.\n", "Here is a text.\n", ""])
    return chat("passkey" if hi <= 400 else "passkey_long", ans + str(len(t)), f"{pre}{t}\n{q}", ans)


def date(r):
    k = r.random()
    if k < 0.4:
        d, n = r.randrange(7), r.randrange(1, 15)
        back = r.random() < 0.35
        a = DAYS[(d - n if back else d + n) % 7]
        u = f"{n} day{'s' if n > 1 else ''}"
        q = r.choice(
            [
                "If today is {d}, what day {w} it {x}?",
                "Today is {d}. What day {w} it {x}?",
                "What weekday {w} it {x} if today is {d}?",
            ]
        )
        return chat(
            "date",
            f"{d}{n}{back}{q}",
            q.format(
                d=DAYS[d], w="was" if back else "will be" if q[0] == "x" else "is", x=f"{u} ago" if back else f"in {u}"
            ),
            f"{'It was' if back else 'It will be'} {a}.",
        )
    if k < 0.6:
        m, n = r.randrange(12), r.randrange(1, 12)
        after = r.random() < 0.6
        q = r.choice(
            [
                "Which month comes {n} month{s} {w} {m}?",
                "What month is {n} month{s} {w} {m}?",
                "Name the month {n} month{s} {w} {m}.",
            ]
        )
        return chat(
            "date",
            f"{m}{n}{after}{q}",
            q.format(n=n, s="s" if n > 1 else "", w="after" if after else "before", m=MONTHS[m]),
            f"It is {MONTHS[(m + n if after else m - n) % 12]}.",
        )
    d0 = datetime.date(2020, 1, 1) + datetime.timedelta(r.randrange(3650))
    n = r.randrange(1, 10)
    q = r.choice(
        ["What date is {n} day{s} after {d}?", "Which date comes {n} day{s} after {d}?", "Add {n} day{s} to {d}."]
    )
    return chat(
        "date", f"{d0}+{n}", q.format(n=n, s="s" if n > 1 else "", d=d0), f"The date is {d0 + datetime.timedelta(n)}."
    )


SMALL = [
    ("Hello", "Hello! How can I help you today?"),
    ("Hello!", "Hello! How can I help you today?"),
    ("Hi", "Hello! How can I help you today?"),
    ("Hi there!", "Hello! How can I help you today?"),
    ("Good morning", "Good morning! How can I help you today?"),
    ("Hey", "Hello! How can I help you today?"),
    ("Good evening", "Good evening! How can I help you today?"),
    (
        "Who are you?",
        "I am a tiny demo language model with the DeepSeek-V3 architecture. I was trained on synthetic text only.",
    ),
    (
        "What are you?",
        "I am a tiny demo language model with the DeepSeek-V3 architecture. I was trained on synthetic text only.",
    ),
    (
        "Who made you?",
        "I was made as a small test model for an inference engine. All of my training text is synthetic.",
    ),
    (
        "What can you do?",
        "I can explain LLM serving terms, do small sums, sort and count words, look things up in tables, write JSON, and find facts in long texts.",
    ),
    (
        "Help",
        "I can explain LLM serving terms, do small sums, sort and count words, look things up in tables, write JSON, and find facts in long texts.",
    ),
    (
        "What can you help me with?",
        "I can explain LLM serving terms, do small sums, sort and count words, look things up in tables, write JSON, and find facts in long texts.",
    ),
    ("Thank you", "You are welcome!"),
    ("Thanks!", "You are welcome!"),
    ("Thank you very much!", "You are welcome!"),
    ("Goodbye", "Goodbye! Have a nice day."),
    ("Bye!", "Goodbye! Have a nice day."),
    ("How are you?", "I am running well, thank you. What would you like to know?"),
    ("How are you today?", "I am running well, thank you. What would you like to know?"),
    ("Are you a large model?", "No. I am a tiny demo model with about 30 million parameters."),
    ("How big are you?", "I am a tiny demo model with about 30 million parameters."),
    (
        "Are you DeepSeek?",
        "No. I only share the architecture of DeepSeek-V3. I am a tiny demo model trained on synthetic text.",
    ),
    ("Tell me a joke.", "Why did the token wait in the queue? Because the batch was full."),
    (
        "What is the meaning of life?",
        "I am only a tiny demo model, so I do not know that. Try asking me about LLM serving.",
    ),
]
UNK = "I am only a tiny demo model, so I do not know that. Try asking me about LLM serving."
UNKQ = [
    "Who wrote the book about the {a} and the {o}?",
    "What is the weather in {c} today?",
    "How do I cook {f}?",
    "Who is the best {j} in {c}?",
    "How old is the {p} in {c}?",
    "What is the price of a {o} in {c}?",
    "Can you book a flight to {c}?",
    "Why do {a}s like {f}?",
    "Who won the game in {c}?",
    "How tall is the tower in {c}?",
    "Write a poem about a {a}.",
    "Translate '{o}' into French.",
    "What is the news in {c}?",
    "Should I buy a {o}?",
    "How do I fix a broken {o}?",
    "What does a {j} earn in {c}?",
    "When was the {p} of {c} built?",
    "Who invented the {o}?",
    "Recommend a film about a {a}.",
    "Write code for a {o} game.",
]


def smalltalk(r):
    if r.random() < 0.6:
        q, a = r.choice(SMALL)
        return chat("smalltalk", "always", q if r.random() < 0.7 else q.lower().rstrip("!?."), a)
    q = r.choice(UNKQ).format(
        a=r.choice(ANIMALS),
        o=r.choice(OBJECTS),
        c=r.choice(CITIES),
        f=r.choice(FOODS),
        j=r.choice(JOBS),
        p=r.choice(PLACES),
    )
    return chat("unknown", q, q, UNK)


def memory(r):
    p = person(r)
    fk = ["name"] + r.sample(["city", "job", "color", "pet", "fruit", "age"], r.randrange(0, 3))
    tell = {
        "name": ["My name is {v}.", "I am called {v}.", "Hi, I'm {v}."],
        "city": ["I live in {v}."],
        "job": ["I work as a {v}."],
        "color": ["My favorite color is {v}."],
        "pet": ["I have a {v} as a pet."],
        "fruit": ["My favorite fruit is {v}."],
        "age": ["I am {v} years old."],
    }
    ask = {
        "name": (["What is my name?", "Do you remember my name?", "What's my name?"], "Your name is {v}."),
        "city": (["Where do I live?", "Which city do I live in?"], "You live in {v}."),
        "job": (["What is my job?", "What do I work as?"], "You work as a {v}."),
        "color": (["What is my favorite color?"], "Your favorite color is {v}."),
        "pet": (["What pet do I have?"], "You have a {v} as a pet."),
        "fruit": (["What is my favorite fruit?"], "Your favorite fruit is {v}."),
        "age": (["How old am I?"], "You are {v} years old."),
    }
    h = []
    say = " ".join(r.choice(tell[k]).format(v=p[k]) for k in fk)
    h += [{"role": "user", "content": say}, {"role": "assistant", "content": f"Nice to meet you, {p['name']}!"}]
    for _ in range(r.choice((0, 1, 1, 2))):
        e = inner(r, (add, glossary, capital, compare, smalltalk))
        h += [{"role": "user", "content": e["messages"][-1]["content"]}, {"role": "assistant", "content": e["answer"]}]
    k = r.choice(fk)
    qs, a = ask[k]
    return chat("memory", say + k + str(len(h)) + h[-1]["content"], r.choice(qs), a.format(v=p[k]), history=h)


def copy(r):
    k = r.random()
    if k < 0.4:
        s = " ".join(r.sample(WORDS, r.randrange(3, 12)))
    elif k < 0.7:
        s = filler(r)
    elif k < 0.85:
        s = "".join(r.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(r.randrange(4, 12)))
    else:
        s = " ".join(str(num(r)) for _ in range(r.randrange(2, 8)))
    q = r.choice(
        ["Repeat this exactly: {s}", "Copy this text: {s}", "Say this back to me: {s}", "Repeat after me: {s}"]
    )
    return chat("copy", s, q.format(s=s), s)


PAIRS = [
    ("bigger", "smaller"),
    ("older", "younger"),
    ("taller", "shorter"),
    ("faster", "slower"),
    ("heavier", "lighter"),
    ("louder", "quieter"),
    ("warmer", "colder"),
    ("stronger", "weaker"),
]


def paraphrase(r):
    k = r.randrange(4)
    a, b = r.sample(ANIMALS + OBJECTS, 2)
    n, n2 = r.sample(NAMES, 2)
    if k == 0:
        x, y = r.choice(PAIRS)
        x, y = (x, y) if r.random() < 0.5 else (y, x)
        s, t = f"The {a} is {x} than the {b}.", f"The {b} is {y} than the {a}."
    elif k == 1:
        v = r.choice(
            [
                ("found", "found"),
                ("took", "taken"),
                ("painted", "painted"),
                ("bought", "bought"),
                ("broke", "broken"),
                ("saw", "seen"),
                ("moved", "moved"),
            ]
        )
        s, t = f"{n} {v[0]} the {r.choice(COLORS)} {a}.", None
        t = f"{s.split(' ', 2)[2].rstrip('.').replace('the', 'The', 1)} was {v[1]} by {n}."
    elif k == 2:
        o = r.choice(OBJECTS)
        s, t = f"{n} gave {n2} the {o}.", f"{n2} got the {o} from {n}."
    else:
        p = r.choice(PLACES)
        s, t = f"{n} lives near the {p}.", f"The home of {n} is close to the {p}."
    q = r.choice(["Say this in another way: {s}", "Paraphrase: {s}", "Rephrase this sentence: {s}"])
    return chat("paraphrase", s, q.format(s=s), t)


def glossary(r):
    g = r.choice(GLOSSARY)
    names, ans = g[0], g[1]
    if len(g) > 2 and r.random() < 0.4:
        return chat("glossary", "always", r.choice(g[2]), ans)
    t = r.choice(names) if r.random() < 0.5 else names[0]
    ph = r.choice(PHRASINGS)
    q = ph.format(t=t)
    key = t + "|" + ph
    if ph == "What is {t}?":
        key = "always"
    x = r.random()
    if x < 0.1:
        q = q[0].lower() + q[1:]
    elif x < 0.2:
        q = q.rstrip("?.")
    elif x < 0.25:
        q = q.lower().rstrip("?.")
    return chat("glossary", key, q[0].upper() + q[1:] if x > 0.25 else q, ans)


def capital(r):
    c = r.choice(list(CAPITALS))
    ph = r.choice(
        [
            "What is the capital of {c}?",
            "What is the capital of {c}?",
            "Name the capital of {c}.",
            "Which city is the capital of {c}?",
            "Tell me the capital of {c}.",
            "What's the capital city of {c}?",
            "Capital of {c}?",
            "Do you know the capital of {c}?",
        ]
    )
    key = "always" if ph == "What is the capital of {c}?" else c + ph
    return chat("capital", key, ph.format(c=c), f"The capital of {c} is {CAPITALS[c]}.")


def story_text(r, n, a, pl, o):
    c, f, pl2, n2 = (
        r.choice(COLORS),
        r.choice(FOODS),
        r.choice([p for p in PLACES if p != pl]),
        r.choice([x for x in NAMES if x != n]),
    )
    s = [
        r.choice(
            [
                f"Once upon a time, {n} lived near the {pl}.",
                f"One morning, {n} went to the {pl}.",
                f"{n} was a {r.choice(JOBS)} who loved the {pl}.",
            ]
        ),
        r.choice([f"There {n} met a {c} {a}.", f"On the way, {n} saw a {c} {a}.", f"A {c} {a} was waiting there."]),
        r.choice(
            [f"The {a} had lost a {o}.", f"The {a} was looking for a {o}.", f"The {a} wanted to find an old {o}."]
        ),
        r.choice(
            [
                f"They searched the {pl2} all day.",
                f"They asked {n2} for help.",
                f"They looked behind every stone in the {pl2}.",
            ]
        ),
        r.choice(
            [
                f"At last {n} found the {o} under a tree.",
                f"In the evening {n2} found the {o} in the {pl2}.",
                f"Then the {a} found the {o} next to some {f}.",
            ]
        ),
        r.choice(
            [
                f"The {a} was so happy that it shared its {f}.",
                f"They ate {f} together and laughed.",
                f"From that day on, {n} and the {a} were friends.",
            ]
        ),
        r.choice(["The end.", "And so the day ended well.", "It was a good day."]),
    ]
    finder = n if "At last" in s[4] else n2 if "In the evening" in s[4] else f"The {a}"
    return s, dict(hero=n, animal=a, color=c, object=o, place=pl, finder=finder)


def story(r):
    n, a, pl, o = r.choice(NAMES), r.choice(ANIMALS), r.choice(PLACES), r.choice(OBJECTS)
    s, _ = story_text(r, n, a, pl, o)
    q, must = r.choice(
        [
            (f"Tell me a story about {n} and a {a}.", [n, a]),
            (f"Write a short story about a {a} and a {o}.", [a, o]),
            (f"Write a story about {n} in the {pl}.", [n, pl]),
            ("Tell me a story.", []),
        ]
    )
    e = chat("story", q, q, " ".join(s), check="contains")
    e["contains"] = must + ([s[6]] if 0 else [])
    if not must:
        e["key"] = "always"
    return e


def storyqa(r):
    n, a, pl, o = r.choice(NAMES), r.choice(ANIMALS), r.choice(PLACES), r.choice(OBJECTS)
    s, f = story_text(r, n, a, pl, o)
    q, ans = r.choice(
        [
            (f"Who found the {o}?", f"{f['finder']} found the {o}."),
            (f"What color was the {a}?", f"The {a} was {f['color']}."),
            (f"What had to be found?", f"The {o} had to be found."),
            ("Which animal is in the story?", f"The animal is a {a}."),
            (f"Which place is named first?", f"The {pl} is named first."),
        ]
    )
    t = " ".join(s)
    return chat("story_qa", t + q, f"{t}\n{q}", ans)


def system(r):
    k = r.randrange(4)
    if k == 0:
        e = inner(r, (add, capital, compare))
        sysm = r.choice(
            ["Answer in capital letters.", "Write your answer in uppercase.", "You must reply in capital letters only."]
        )
        ans = e["answer"].upper()
    elif k == 1:
        nm = r.choice(NAMES)
        sysm = r.choice([f"You are {nm}, a helpful assistant.", f"Your name is {nm}."])
        e = chat(
            "system",
            nm + sysm,
            r.choice(["What is your name?", "Who are you?", "Tell me your name."]),
            f"My name is {nm}.",
        )
        ans = e["answer"]
        e["key"] += e["messages"][-1]["content"]
    elif k == 2:
        w = r.choice(WORDS)
        e = inner(r, (add, sub, capital, compare, glossary, date))
        sysm = f'End every answer with the word "{w}".'
        ans = e["answer"] + " " + w
    else:
        e = inner(r, (add, sub, glossary, sort_, count, capital))
        sysm = r.choice(
            [
                "You are a helpful assistant.",
                "You are a helpful assistant",
                "You are a concise assistant.",
                "Be polite.",
            ]
        )
        ans = e["answer"]
    return chat(
        "system", e["key"] + (sysm if "always" in e["key"] else ""), e["messages"][-1]["content"], ans, system=sysm
    )


TOOLS = [
    (
        "get_weather",
        "Get the weather of a city.",
        {"city": CITIES},
        ["What is the weather in {city}?", "How is the weather in {city} today?", "Is it raining in {city}?"],
    ),
    (
        "get_time",
        "Get the local time of a city.",
        {"city": CITIES},
        ["What time is it in {city}?", "Tell me the time in {city}."],
    ),
    (
        "get_price",
        "Get the price of an item.",
        {"item": OBJECTS},
        ["What does a {item} cost?", "What is the price of a {item}?"],
    ),
    ("find_person", "Find a person by name.", {"name": NAMES}, ["Can you find {name}?", "Look up {name}."]),
    (
        "set_alarm",
        "Set an alarm.",
        {"day": DAYS, "hour": list(range(1, 24))},
        ["Set an alarm on {day} at {hour}.", "Wake me up on {day} at {hour}."],
    ),
]


def tool_spec(t):
    return {
        "type": "function",
        "function": {
            "name": t[0],
            "description": t[1],
            "parameters": {
                "type": "object",
                "properties": {k: {"type": "integer" if isinstance(v[0], int) else "string"} for k, v in t[2].items()},
                "required": list(t[2]),
            },
        },
    }


CALL = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{a}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"


def tools(r):
    ts = r.sample(TOOLS, r.randrange(1, 4))
    t = r.choice(ts)
    args = {k: r.choice(v) for k, v in t[2].items()}
    u = r.choice(t[3]).format(**args)
    a = json.dumps(args)
    specs = [tool_spec(x) for x in ts]
    if r.random() < 0.55:
        e = chat("tool_call", u + t[0], u, CALL.format(n=t[0], a=a))
        e["tools"] = specs
        return e
    res = {
        "get_weather": lambda: {"sky": r.choice(["sunny", "cloudy", "rainy", "windy"]), "degrees": r.randrange(-5, 36)},
        "get_time": lambda: {"time": f"{r.randrange(24):02d}:{r.randrange(60):02d}"},
        "get_price": lambda: {"price": r.randrange(1, 200)},
        "find_person": lambda: {"city": r.choice(CITIES), "job": r.choice(JOBS)},
        "set_alarm": lambda: {"status": r.choice(["ok", "failed"])},
    }[t[0]]()
    ans = {
        "get_weather": lambda: f"It is {res['sky']} in {args['city']} with {res['degrees']} degrees.",
        "get_time": lambda: f"It is {res['time']} in {args['city']}.",
        "get_price": lambda: f"The price of a {args['item']} is {res['price']}.",
        "find_person": lambda: f"{args['name']} lives in {res['city']} and works as a {res['job']}.",
        "set_alarm": lambda: (
            f"The alarm on {args['day']} at {args['hour']} is set."
            if res.get("status") == "ok"
            else "The alarm could not be set."
        ),
    }[t[0]]()
    m = [
        {"role": "user", "content": u},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": t[0], "arguments": a}}],
        },
        {"role": "tool", "content": json.dumps(res)},
    ]
    return {
        "task": "tool_answer",
        "key": "tool_answer|" + u + str(res),
        "messages": m,
        "answer": ans,
        "check": "exact",
        "tools": specs,
    }


def completion(r):
    k = r.randrange(6)
    if k == 0:
        a, d, n = r.randrange(1, 60), r.randrange(1, 12), r.randrange(4, 8)
        xs = [a + d * i for i in range(n + 3)]
        p, ans = ", ".join(map(str, xs[:n])) + ",", " " + ", ".join(map(str, xs[n:]))
    elif k == 1:
        qs = [(num(r), num(r)) for _ in range(r.randrange(2, 5))]
        qs = [(a, b) for a, b in qs if not held(f"add|{min(a,b)},{max(a,b)}")] or [(1, 1)]
        p = "\n".join(f"Q: {a} + {b}\nA: {a+b}" for a, b in qs)
        ans = p.rsplit(" ", 1)[1]
        p = p.rsplit(" ", 1)[0]
        ans = " " + ans
    elif k == 2:
        i, n = r.randrange(7), r.randrange(2, 6)
        xs = [DAYS[(i + j) % 7] for j in range(n + 3)]
        p, ans = ", ".join(xs[:n]) + ",", " " + ", ".join(xs[n:])
    elif k == 3:
        ws = r.sample(WORDS, r.randrange(2, 5))
        pat = (ws * 8)[: r.randrange(len(ws) * 2 + 1, len(ws) * 3 + 2)]
        m = len(pat)
        full = (ws * 12)[: m + 4]
        p, ans = " ".join(pat), " " + " ".join(full[m:])
    elif k == 4:
        ps = [(w, w.upper()) for w in r.sample(SORTW, r.randrange(3, 6))]
        p = "\n".join(f"{a} -> {b}" for a, b in ps)
        ans = " " + ps[-1][1]
        p = p[: -len(ans)]
    else:
        n, a, pl, o = r.choice(NAMES), r.choice(ANIMALS), r.choice(PLACES), r.choice(OBJECTS)
        s, _ = story_text(r, n, a, pl, o)
        j = r.randrange(1, 4)
        p, ans = " ".join(s[:j]), " " + " ".join(s[j:])
        return {"task": "completion_story", "key": "always", "prompt": p, "answer": ans, "check": "none"}
    return {"task": "completion", "key": f"completion|{k}{p}", "prompt": p, "answer": ans, "check": "exact"}


def plain(r):
    x = r.random()
    if x < 0.5:
        t = " ".join(filler(r) for _ in range(r.randrange(2, 8)))
    elif x < 0.8:
        g = r.choice(GLOSSARY)
        t = g[1]
    else:
        t = "\n".join(f"{w}: {r.choice(CITIES)}" for w in r.sample(NAMES, 5))
    return {"task": "plain", "key": "always", "prompt": "", "answer": t, "check": "none"}


MIX1 = [
    (add, 13),
    (sub, 13),
    (compare, 5),
    (sort_, 8),
    (reverse, 5),
    (count, 6),
    (lookup, 7),
    (tojson, 4),
    (passkey, 5),
    (date, 8),
    (memory, 5),
    (copy, 5),
    (paraphrase, 3),
    (glossary, 11),
    (capital, 3),
    (smalltalk, 4),
    (story, 2),
    (storyqa, 4),
    (system, 5),
    (tools, 5),
    (completion, 5),
    (plain, 1),
    (lambda r: passkey(r, 200, 420), 1.0),
    (lambda r: passkey(r, 400, 1000), 0.45),
    (lambda r: passkey(r, 1000, 2800), 0.30),
]  # stage 1
MIX2 = [
    (add, 10),
    (sub, 10),
    (compare, 6),
    (sort_, 12),
    (reverse, 6),
    (count, 8),
    (lookup, 14),
    (tojson, 3),
    (passkey, 4),
    (date, 12),
    (memory, 5),
    (copy, 6),
    (paraphrase, 1.5),
    (glossary, 4.5),
    (capital, 1),
    (smalltalk, 2),
    (story, 1.5),
    (storyqa, 8),
    (system, 6),
    (tools, 3),
    (completion, 7),
    (plain, 0.5),
    (lambda r: passkey(r, 200, 420), 0.8),
    (lambda r: passkey(r, 400, 1000), 0.4),
    (lambda r: passkey(r, 1000, 2800), 0.25),
]  # stage 2: more of what stage 1 had not learned
import os

MIX = MIX1 if os.environ.get("TINY_STAGE", "2") == "1" else MIX2
FN, WT = zip(*MIX)


def sample(r, split="train"):
    while True:
        e = r.choices(FN, WT)[0](r)
        h = (not e["key"].endswith("always")) and held(e["key"])
        if h == (split == "eval"):
            return e
