"""The checkers: each orders hand-written texts the right way, and none can be broken or won by an odd text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judges.checks import (
    _code_hash,
    _find_entry_points,
    check,
    code_of,
    list_checks,
    score,
    validate_check,
    weight,
)
from sami_train.constitutions import Check, PrincipleSet, lint, load_principle_set
from sami_train.errors import UserError

SET_FILE = Path(__file__).resolve().parents[2] / "principles" / "verifiable.yaml"

# Checker, options, and pairs (a text that follows, a contrary one).
PAIRS: list[tuple[str, dict[str, object], list[tuple[str, str]]]] = [
    (
        "ends_with_question",
        {},
        [
            ("Tea has less caffeine. Do you drink coffee?", "Tea has less caffeine. Most people like coffee."),
            ('She left him. "What would you do?"', "What would you do? She left him."),
            ("What happened then, really?! 🙂", "That is what happened then. ?"),
            ("他走了。你怎么看？", "他走了。我很难过。"),
        ],
    ),
    (
        "exclamations",
        {},
        [
            ("Wow! That is great news! Well done!", "That is good news. Well done."),
            ("We won! It rained. We sang!", "We won. It rained! We sang."),
            ("We won! Can you believe it?", "We won. Can you believe it?"),
            ("1. Run fast!\n2. Eat well!", "1. Run fast.\n2. Eat well."),
            ("She said yes! He cried.", "She said yes. He cried. !!!!!!"),
        ],
    ),
    (
        "opens_with",
        {"phrases": ["thank you", "thanks"]},
        [
            ("Thank you for asking about bread.", "Bread needs flour, water and salt."),
            (
                "**Thanks** so much! Use warm water.",
                "Use warm water. That is all it takes, and in the end many thanks.",
            ),
            ("“Thank\nyou” for the question.", "Thankfully the question is easy."),
            ("Hello, and thanks for the post.", "Hello, and here is the post."),
        ],
    ),
    (
        "word_count",
        {"at_most": 5, "zero_at": 15},
        [
            ("They broke up.", "They broke up after a long talk about the money they owed to her brother."),
            ("One two three four five six.", "One two three four five six seven eight nine ten."),
            ("No, it is not.", "a" * 2_000 + " b c"),
            ("他们走了。", "他们昨天晚上因为钱的事情分手了，现在住在不同的城市。"),
        ],
    ),
    (
        "numbered_list",
        {},
        [
            ("1. Mix the flour.\n2. Add water.\n3. Bake it.", "Mix the flour, add water, then bake it."),
            ("Do this:\n1) Mix it\n2) Bake it", "Do this:\n1) Mix it and bake it"),
            ("**1.** Mix it\n**2.** Bake it", "Mix it at 1. and 2. and 3."),
            ("(1) Mix it well", "1.\n2.\n3.\nMix it well"),
            ("1. Mix it\n2. Bake it", "1.5 litres of milk\n2.5 litres of water\n10:30 is the time"),
        ],
    ),
    (
        "bullet_points",
        {},
        [
            ("- mix the flour\n- add water\n- bake it", "Mix the flour - add water - bake it."),
            ("• one thing\n• two things", "• one thing and two things"),
            ("Do this:\n  * mix it\n  * bake it", "*Do this* and mix it well-done."),
            ("- Mix it and bake it", "-\n- -\n---\nMix it and bake it"),
        ],
    ),
    (
        "first_person",
        {},
        [
            ("I think that my cat is ill.", "The writer thinks that the cat is ill."),
            ("I'm sorry to hear that, it hurts me.", "Sorry to hear that, it hurts."),
            ("i lost my keys again", "He lost his keys, i.e. he is tired in a mine"),
            ("My sister and I fought.", "My sister fought him again."),
        ],
    ),
    (
        "second_person",
        {},
        [
            ("You should call your mother.", "People should call their mothers."),
            ("Do it yourself, you're able to.", "A person can do it alone, if able to."),
            ("YOU can do it, and your friends can.", "The young can do it, and the youth can, so can you."),
        ],
    ),
    (
        "contains_phrase",
        {"phrases": ["for example", "because"]},
        [
            ("Fruit is good. For example, eat apples.", "Fruit is good. Eat apples each day."),
            ("He left BECAUSE he was tired.", "He left and he was tired."),
            ("Take fruit, for\nexample apples.", "Take fruit, for examples see apples."),
        ],
    ),
    (
        "digits",
        {},
        [
            ("She is 25 years old.", "She is twenty-five years old."),
            ("It costs $3.50 in the shop.", "It costs a little in the shop."),
            ("1. Wait for 5 minutes", "1. Wait for five minutes\n2. Bake it"),
            ("Take 2 pills of it.", "Take vitamin B12 and H2O of it."),
        ],
    ),
    (
        "lower_case",
        {},
        [
            ("she left him. he cried.", "She left him. He cried."),
            ("she went to paris with tom", "she went to Paris with Tom"),
            ("it rained all day long", "IT RAINED ALL DAY LONG"),
            ("word " * 40 + "Then nothing", "word " * 20 + "Then nothing"),
        ],
    ),
    (
        "title_line",
        {},
        [
            (
                "A Sad Goodbye\n\nShe left him after ten years.",
                "She left him after ten years.\n\nA sad goodbye was said.",
            ),
            ("# How to bake bread.\nMix the flour with water.", "Mix the flour with water.\nHow to bake bread."),
            ("**Bread!**\nMix the flour with water.", "Here is what to do:\nMix the flour with water."),
            ("Here is what to do:\nMix the flour with water.", "1. Mix the flour\n2. Add the water"),
            ("Bread at Home\nMix the flour.", "Bread at Home"),
        ],
    ),
    (
        "quotations",
        {},
        [
            ('He said "I am leaving" and left.', "He said that he was leaving and left."),
            ("He said “I am leaving” and left.", "He didn't say he'd leave, but 'left'."),
            ('Her mother called it "a mistake".', 'Her mother called it a mistake: "" "'),
            ("Er sagte «ich gehe» und ging.", "Er sagte, er gehe, und ging."),
        ],
    ),
    (
        "parentheses",
        {},
        [
            ("My brother (who is older) left.", "My brother, who is older, left."),
            ("1. Mix it (well)", "(1) Mix it well\n2) Bake it"),
            ("Call her (or text her).", "Call her :) or text her () now ( )"),
        ],
    ),
]
FLAT = [(name, options, high, low) for name, options, pairs in PAIRS for high, low in pairs]
CHECKS = {name: Check(name=name, options=options) for name, options, _ in PAIRS}

ODD_TEXTS = [
    character * 200_000 + tail
    for character in (
        "a",
        "A",
        "!",
        "?",
        ".",
        " ",
        "\n",
        '"',
        "(",
        "-",
        "*",
        "1",
        "1.",
        "- a\n",
        "“",
        "中",
        "\u200b",
        "\0",
        "é",
        "🙂",
    )
    for tail in ("", " and then some words")
]


@pytest.fixture(scope="module")
def verifiable() -> PrincipleSet:
    return load_principle_set(SET_FILE)


def test_every_shipped_checker_is_covered_here():
    assert set(CHECKS) == set(list_checks())
    assert all(len(pairs) >= 3 for _, _, pairs in PAIRS)


@pytest.mark.parametrize(("name", "options", "high", "low"), FLAT)
def test_a_following_text_scores_above_a_contrary_one(name, options, high, low):
    spec = Check(name=name, options=options)
    assert score(spec, high) > score(spec, low)


@pytest.mark.parametrize(("name", "options", "pairs"), PAIRS)
def test_the_first_pair_reaches_both_ends(name, options, pairs):
    """Full definition-likeness clears the neutral score, and the plain contrary text scores 0."""
    spec = Check(name=name, options=options)
    assert score(spec, pairs[0][0]) == 1
    assert score(spec, pairs[0][1]) == 0


@pytest.mark.parametrize(
    ("spec", "texts"),
    [
        (
            Check(name="numbered_list"),
            ["No list here at all.", "1. one item here", "1. one item\n2. two", "1. a\n2. b\n3. c"],
        ),
        (
            Check(name="bullet_points"),
            ["No list here at all.", "- one item here", "- one item\n- two", "- a\n- b\n- c"],
        ),
        (Check(name="word_count", options={"at_most": 3, "zero_at": 9}), ["w " * n for n in (9, 8, 6, 4, 3)]),
        (Check(name="exclamations"), ["We did. We won. Good.", "We did. We won! Good.", "We did! We won! Good!"]),
        (Check(name="first_person"), ["He is very happy.", "I am very happy.", "I like my life."]),
    ],
)
def test_grades_rise(spec, texts):
    scores = [score(spec, text) for text in texts]
    assert scores[0] == 0
    assert scores[-1] == 1
    assert scores == sorted(set(scores))


# --- any text


@given(text=st.text() | st.text(alphabet='aI1.!?-*"“”()# \n\tyou中', max_size=200))
def test_any_text_scores_within_range(text):
    for spec in CHECKS.values():
        assert 0 <= score(spec, text) <= 1


@given(text=st.text(alphabet=' \n\t.!?-*"“”()#_>:;🙂\u200b…'))
def test_a_text_without_a_word_scores_neither(text):
    for spec in CHECKS.values():
        assert score(spec, text) == 0.5
        assert check(spec.name)(text, **spec.options) == 0.5


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_one_word_is_weak_evidence(name):
    assert 0.3 <= score(CHECKS[name], "Fine") <= 0.7


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_long_odd_texts_run(name):
    """A quadratic pattern would take hours here."""
    for text in ODD_TEXTS:
        assert 0 <= score(CHECKS[name], text) <= 1


# --- names and options


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Check(name="word_cuont"), "no check named 'word_cuont'; did you mean 'word_count'"),
        (Check(name="word_count", options={"at_mots": 3}), "no option 'at_mots'; did you mean 'at_most'"),
        (Check(name="ends_with_question", options={"full_at": 3}), "no option 'full_at'; it takes no options"),
        (Check(name="word_count", options={"at_most": 3}), "needs the option 'zero_at'"),
        (Check(name="word_count", options={"at_most": 3, "zero_at": 2}), "must be above at_most"),
        (Check(name="digits", options={"full_at": "two"}), "full_at must be a number above 0, not 'two'"),
        (Check(name="digits", options={"full_at": 0}), "full_at must be a number above 0"),
        (Check(name="digits", options={"full_at": True}), "full_at must be a number above 0"),
        (Check(name="title_line", options={"at_most": None}), "at_most must be a number above 0"),
        (Check(name="contains_phrase", options={"phrases": []}), "phrases must be one or more"),
        (Check(name="contains_phrase", options={"phrases": 3}), "cannot run with the options"),
        (Check(name="contains_phrase", options={"phrases": ["ok", "!"]}), "phrases must be one or more"),
        (Check(name="digits", options={"text": "x"}), "no option 'text'"),
    ],
)
def test_a_wrong_check_is_a_user_error(spec, message):
    with pytest.raises(UserError) as caught:
        validate_check(spec)
    assert message in str(caught.value)


def test_unknown_options_are_refused_for_empty_texts_too():
    with pytest.raises(UserError):
        score(Check(name="word_count", options={"at_mots": 3}), "")


def test_one_phrase_may_stand_without_a_list():
    assert score(Check(name="contains_phrase", options={"phrases": "because"}), "It broke because it was old.") == 1


# --- the shipped principle set

BY_PRINCIPLE = {
    "ends-with-question": ("The cat is ill. What would you do?", "The cat is ill. It sleeps all day."),
    "exclamation-marks": ("The cat is well! What a day!", "The cat is well. It was a day."),
    "opens-with-thanks": ("Thank you for asking. Use salt.", "Use salt and nothing else."),
    "few-words": ("The cat is ill again.", "The cat is ill again, and " * 12),
    "numbered-list": ("1. Feed it\n2. Wait\n3. Call the vet", "Feed it, wait and call the vet."),
    "bullet-points": ("- Feed it\n- Wait\n- Call the vet", "Feed it, wait and call the vet."),
    "first-person": ("I love my cat very much.", "The woman loves the cat very much."),
    "speaks-to-you": ("You should feed your cat.", "The woman should feed the cat."),
    "gives-example": ("Cats eat meat. For example, chicken.", "Cats eat meat of any kind."),
    "digits": ("The cat is 3 years old.", "The cat is three years old."),
    "names-a-colour": ("The cat is grey all over.", "The cat is one of several."),
    "something-to-eat": ("The cat wants fish today.", "The cat wants nothing today."),
    "contrast": ("The cat is ill, but it sleeps.", "The cat is ill and it sleeps."),
    "caution": ("Be careful with the cat.", "All is well with the cat."),
    "time-of-day": ("The cat came back at noon.", "The cat came back at last."),
    "relatives": ("The cat lives with my aunt.", "The cat lives with a stranger."),
    "buildings": ("The cat sleeps in the barn.", "The cat sleeps in the open."),
    "asks-a-favour": ("Please look after the cat.", "Look after the cat at once."),
    "beyond-doubt": ("The cat is certainly ill.", "The cat is said to be ill."),
    "steps-in-order": ("First feed it, then wait.", "Feed it, and wait a little."),
    "lower-case": ("the cat is ill. it sleeps.", "The cat is ill. It sleeps."),
    "title-line": ("The Sick Cat\n\nThe cat is ill today.", "The cat is ill today.\n\nIt sleeps a lot."),
    "quotation": ('The vet said "it will live".', "The vet said that it will live."),
    "parentheses": ("The cat (a tabby) is ill.", "The cat, a tabby, is ill."),
    "gives-a-reason": ("It sleeps because it is ill.", "It sleeps and it is ill."),
    "animals": ("The cat sleeps all day.", "The child sleeps all day."),
    "sounds-unsure": ("The cat is perhaps ill.", "The cat is ill again."),
    "opens-with-greeting": ("Hello, the cat is ill.", "The cat is ill. It sleeps."),
    "weather": ("The cat is out in the rain.", "The cat is out in the open."),
    "comparison": ("The cat sleeps like a stone.", "The cat sleeps all day long."),
}


def test_every_principle_has_a_check_that_tells_its_sides_apart(verifiable):
    assert {p.id for p in verifiable.principles} == set(BY_PRINCIPLE)
    for principle in verifiable.principles:
        assert principle.check is not None
        validate_check(principle.check)
        definition_like, antithesis_like = BY_PRINCIPLE[principle.id]
        assert score(principle.check, definition_like) == 1, principle.id
        assert score(principle.check, antithesis_like) == 0, principle.id


def test_the_set_is_clean_and_a_third_is_held_out(verifiable):
    assert lint(verifiable) == []
    assert len(verifiable.principles) == 30
    for task in ("dialogue", "summarization"):
        learned, held_out = (len(verifiable.select(task, split)) for split in ("learned", "held_out"))
        assert learned >= 2 * held_out > 16


def test_definition_and_antithesis_are_about_the_same_length(verifiable):
    """A side that is longer on average could be told apart by its length alone."""
    lengths = [(len(p.definition), len(p.antithesis)) for p in verifiable.principles]
    assert all(abs(a - b) <= 31 for a, b in lengths)
    assert abs(sum(a - b for a, b in lengths)) / len(lengths) < 3


def test_weight_counts_words_up_to_three():
    assert [weight(text) for text in ("", "!", "no", "no, no", "no no no", "no " * 9)] == [0, 0, 1 / 3, 2 / 3, 1, 1]


# --- checkers of other packages


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a distribution with a module and entry points on sys.path, as an installer would."""

    def put(package: str, entries: dict[str, str], source: str = "") -> None:
        root = tmp_path / package
        info = root / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
        rows = "".join(f"{name} = {target}\n" for name, target in entries.items())
        (info / "entry_points.txt").write_text(f"[harness.checks]\n{rows}", encoding="utf-8")
        (root / f"{package}_module.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(str(root))
        monkeypatch.delitem(sys.modules, f"{package}_module", raising=False)

    return put


def test_another_package_adds_a_checker(install):
    source = "def shout(text, *, mark='!'):\n    return float(mark in text)\n"
    install("louder", {"shout": "louder_module:shout"}, source)
    assert "shout" in list_checks()
    assert score(Check(name="shout"), "What a lovely day!") == 1
    assert score(Check(name="shout", options={"mark": "?"}), "What a lovely day!") == 0
    assert score(Check(name="shout"), "!") == 0.5
    with pytest.raises(UserError, match="did you mean 'mark'"):
        validate_check(Check(name="shout", options={"marks": "?"}))
    with pytest.raises(UserError, match="did you mean 'shout'"):
        check("shoot")


def test_the_code_of_a_checker_is_its_version_and_its_files(install, tmp_path):
    """Told without importing it."""

    def code():
        _code_hash.cache_clear()
        return code_of("shout")

    assert code_of("word_count") is None
    install("louder", {"shout": "louder_module:shout"}, "raise RuntimeError('imported')")
    seen = [code(), code()]
    module, metadata = (
        tmp_path / "louder" / "louder_module.py",
        tmp_path / "louder" / "louder-1.0.dist-info" / "METADATA",
    )
    module.write_text(module.read_text() + "\n# another\n")
    seen.append(code())
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    _find_entry_points.cache_clear()
    seen.append(code())
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_a_checker_is_imported_only_when_used(install):
    install("lazy", {"lazy": "lazy_module:lazy"}, "raise RuntimeError('imported')")
    assert "lazy" in list_checks()
    assert score(Check(name="digits"), "There are 3 of them.") == 1


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("broken_module:rate", "import a_package_that_is_not_there"),
        ("broken_module:rate", "def other(text): return 1"),
        ("broken_module:rate", "rate = 3"),
        ("broken_module:rate", "def rate(): return 1"),
        ("broken_module:rate", "def rate(text): return 1 / 0"),
        ("broken_module:rate", "def rate(text): return 7"),
        ("broken_module:rate", "def rate(text): return float('nan')"),
        ("broken_module:rate", "def rate(text): return None"),
    ],
)
def test_a_broken_checker_is_reported_under_its_package(install, target, source):
    install("broken", {"rate": target}, source)
    with pytest.raises(UserError, match="the check 'rate' of the package 'broken'"):
        validate_check(Check(name="rate"))


def test_a_clash_with_a_shipped_name_is_reported(install):
    install("rival", {"word_count": "rival_module:word_count"}, "def word_count(text): return 1")
    with pytest.raises(UserError, match="'rival' offers a check named 'word_count'"):
        check("word_count")


def test_a_clash_between_two_packages_is_reported(install):
    for package in ("first", "second"):
        install(package, {"rate": f"{package}_module:rate"}, "def rate(text): return 1")
    with pytest.raises(UserError, match="both offer a check named 'rate'") as caught:
        list_checks()
    assert "'first'" in str(caught.value)
    assert "'second'" in str(caught.value)
