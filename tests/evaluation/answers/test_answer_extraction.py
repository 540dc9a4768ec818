import pytest

from cera.evaluation.answers import Extraction, Verdict, extract, is_correct, judge


@pytest.mark.parametrize(
    ("text", "answer", "extracted_by"),
    [
        (r"So \boxed{5}.", "5", "boxed"),
        (r"First \boxed{4}, then \boxed{\frac{1}{2}}", r"\frac{1}{2}", "boxed"),
        (r"\fbox{\left\{ 1, \{2\} \right\}}", r"\left\{ 1, \{2\} \right\}", "boxed"),
        (r"$\boxed{\text{if } x^{2^{3}} }$", r"\text{if } x^{2^{3}}", "boxed"),
        (r"\boxed 5", "5", "boxed"),
        (r"\boxed{x = \boxed{7}}", "7", "boxed"),
        (r"\boxed{3}. The answer is 4.", "3", "boxed"),
        (r"Put it in \boxed{}. The answer is 4.", "4", "phrase"),
        (r"The answer is 4. \boxed{\frac{1", "4", "phrase"),  # cut off
        (r"{ \boxed{5}", "5", "boxed"),
        ("It is 6.\n#### 1,234", "1,234", "hashes"),
        ("#### -7\n#### $8.50\nDone.", "$8.50", "hashes"),
        ("#### 5. Compute\nThe answer is 9.", "9", "phrase"),  # a heading
        ("#### Step 2\nAdd 3 and 4.\nThe answer is 7.", "7", "phrase"),
        ("The answer is 3. #### 4", "4", "hashes"),
        ("The answer is 3.5. Good.", "3.5", "phrase"),
        ("The answer is: 2\nThe answer is: 3\n", "3", "phrase"),
        ("The final answer is $\\frac{1}{2}$.", r"\frac{1}{2}", "phrase"),
        ("Therefore, the final answer is \\(x = 5\\). I hope it is correct.", "x = 5", "phrase"),
        ("**Answer:** 42", "42", "phrase"),
        ("Final Answer: **42**.", "42", "phrase"),
        ("Answer:\n\n\\[ \\frac{1}{2} \\]\n", r"\frac{1}{2}", "phrase"),
        ("The answer is (1, 2], because 3 < 4.", "(1, 2]", "phrase"),
        ("The answer is 3:45 p.m. on Tuesday.", "3:45 p.m. on Tuesday", "phrase"),
        ("The answer is $5.", "$5", "phrase"),
        ("The answer is $18. He paid $2 more.", "$18", "phrase"),
        ("Answer: $18. He paid $2.", "$18", "phrase"),
        ("The answer is $18.50. He paid $2.", "$18.50", "phrase"),
        ("The answer is $18.\nHe paid $2.", "$18", "phrase"),
        ("The answer is $18\nHe paid $2.", "$18", "phrase"),
        ("The answer is $2x+1$. Then $y=3$.", "2x+1", "phrase"),
        ("The answer is $(1. 5)$. Then $y=3$.", "(1. 5)", "phrase"),
        ("The answer is $$\n5\n$$", "5", "phrase"),
        (
            "The answer is $\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}$.",
            "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
            "phrase",
        ),
        ("The answer is 5 (five).", "5", "phrase"),
        ("The answer is 5, not 6.", "5", "phrase"),
        ("The answer is 18 (9*2=18).", "18", "phrase"),
        ("The answer is $18$ (since 9*2=18).", "18", "phrase"),
        ("The answer is 12 apples, 3 of which are red.", "12 apples", "phrase"),
        ("The answer is 1, 2 and 3.", "1, 2 and 3", "phrase"),
        ("The answer is 2 (x+1).", "2 (x+1)", "phrase"),
        ("The answer is 5 apples (she had 3).", "5 apples", "phrase"),
        (r"The answer is $x$ + \sin (ab).", r"$x$ + \sin (ab)", "phrase"),
        ("The answer is May 4.", "May 4", "phrase"),
        ("The answer is October 30.", "October 30", "phrase"),
        ("The answer is 5。 It is odd。", "5", "phrase"),
        ("The answer is not 5. It is 6.", "6", "last number"),
        ("It is 6, not 5.", "6", "last number"),
        ("#### Answer: 5", "5", "hashes"),
        ("#### The answer is 5", "5", "hashes"),
        (r"\text{The answer is } 5", "5", "phrase"),
        (r"\text{The answer is 5}", "5", "phrase"),
        (r"\boxed{\text{The answer is } 5}", "5", "boxed"),
        ("The correct option is (B).", "(B)", "phrase"),
        ("The best choice is B.", "B", "phrase"),
        ("The answer is 5 miles per hour. That is slow.", "5 miles per hour", "phrase"),
        ("Answer: Janet sells 16 - 7 = 9 eggs every day for 2 dollars. She makes $18.", "18", "last number"),
        ("She pays $1,234.50 in all.", "1,234.50", "last number"),
        ("It falls to -3 degrees", "-3", "last number"),
        ("From 10-3 we get 7", "7", "last number"),
        ("I ate 3/4 of it", "3/4", "last number"),
        ("It is about \\frac{3}{4} of x_2", r"\frac{3}{4}", "last number"),
        ("Up by 50%.", "50%", "last number"),
        ("That makes 12 500", "12 500", "last number"),
        ("So we get $1{,}000$ of them", "1{,}000", "last number"),
        ("She needs 2 1/2 cups.", "2 1/2", "last number"),
        ("They share it 2:3.", "2:3", "last number"),
        ("It ends at 3:45 p.m. on Monday", "3:45 p.m.", "last number"),
        ("So 10^6 people came", "10^6", "last number"),
        ("They make $5 million a year", "5 million", "last number"),
        ("She has forty-two apples left.", "forty-two", "last number"),
        ("It is １２½ of it", "１２½", "last number"),  # wide digits
        ("It fell to negative 5 degrees", "negative 5", "last number"),
        ("An area of 5 cm^{2}", "5", "last number"),
        ("#### **`$5$`.**", "5", "hashes"),
        ("#### 5" + ".*" * 2000, "5", "hashes"),  # no depth of emphasis is an error
    ],
)
def test_extraction(text, answer, extracted_by):
    assert extract(text) == Extraction(answer, extracted_by)


@pytest.mark.parametrize("text", ["", " ", "none", r"\boxed{}", r"\boxed", "####", "The answer is:", "$$"])
def test_no_answer(text):
    assert extract(text) is None
    assert not is_correct(text, "5")
    assert is_correct(text, text) == (text == "none")


@pytest.mark.parametrize(
    "text", ["So 18.", "It's 18!", "I got 18", "so 36/2", "so, 18", "x is 18", "So $18$.", r"I got \(18\)."]
)
def test_a_number_after_words_is_the_answer(text):
    assert is_correct(text, "18")
    assert not is_correct(text, "8")
    assert not is_correct("x" + text, "18x")


@pytest.mark.parametrize(
    "text", [r"So it is $2\sqrt{3}$ cm", r"It is \frac{\sqrt{3}}{2} here", r"So 12\pi in all", "√3 of it"]
)
def test_an_operand_is_no_answer(text):
    assert extract(text) is None


def test_a_small_number_in_words_is_often_no_number():
    assert extract("Neither of the two is one of them.") is None


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("The answer is two.", "2"),
        (r"\boxed{Forty two}", "42"),
        ("a hundred and five", "105"),
        ("#### Six apples", "6"),
        ("The answer is three million.", "3000000"),
    ],
)
def test_a_number_in_words_is_its_value_if_a_number_is_asked_for(text, gold):
    assert is_correct(text, gold)
    assert not is_correct(text, gold + "0")
    assert not is_correct(text, rf"\text{{more than {gold}}}")


NUMBERS = [  # as it is written, its value, and what only a part of it would be
    ("12 500", "12500", "500"),
    ("1 000 000", "1000000", "0"),
    ("12\N{NO-BREAK SPACE}500", "12500", "500"),
    ("1,250.50", "1250.5", "250.5"),
    ("1{,}000", "1000", "0"),
    (r"12\,345", "12345", "345"),
    (r"10,\!080", "10080", "80"),
    ("2 1/2", "5/2", "1/2"),
    (r"2\frac{1}{2}", "2.5", "1/2"),
    (r"\frac34", "0.75", "34"),
    ("2½", "2.5", "2"),
    ("2:3", "2:3", "3"),
    ("3:45", "3:45", "45"),
    ("3:45 p.m.", "15:45", "45"),
    ("14:30:05", "2:30:05 PM", "5"),
    ("5 p.m.", "5", "4"),
    ("1.5e3", "1500", "3"),
    ("1.5 x 10^3", "1500", "10"),
    (r"1.5 \times 10^{3}", "1500", "1.5"),
    ("10^6", "1000000", "10"),
    ("10²", "100", "10"),
    ("5 million", "5000000", "5"),
    ("50 percent", "0.5", "5"),
    ("forty-two", "42", "40"),
    ("two thousand five hundred", "2500", "500"),
    ("negative 5", "-5", "5"),
]
SENTENCES = [
    "That makes {}",
    "So in all {} of them came.",
    "#### {}\nDone.",
    "The answer is {}.",
    r"It is \boxed{{{}}}.",
    "{}",
]


@pytest.mark.parametrize(("written", "value", "part"), NUMBERS)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_number_is_read_whole_and_alike_wherever_it_stands(sentence, written, value, part):
    text = sentence.format(written)
    verdict = judge(text, value)
    assert verdict.correct
    assert " ".join(verdict.answer.split()).rstrip(".") == " ".join(written.split()).rstrip(".")
    assert is_correct(verdict.answer, value)  # the record's answer is the one that was compared
    assert extract(text).answer == verdict.answer
    assert not is_correct(text, part)


def test_solutions_and_bare_answers():
    solution = r"We add $2 + 3$ to get $\boxed{5}$.The answer is: 5"
    for right in (
        "5",
        "5.0",
        r"\boxed{5}",
        "She has 5 apples, so\n#### 5",
        "The answer is 5.",
        "I count 5 apples in all",
    ):
        assert is_correct(right, solution)
    assert not is_correct("The gold answer is 5, mine is\n#### 6", solution)
    assert not is_correct(r"It is 5. The answer is 6", solution)
    assert not is_correct("There are 5 or 6 of them, I believe", solution)
    assert not is_correct("It is 12 meters by 5 inches: 60", "5")
    # the last number is a guess about numbers only
    assert not is_correct("I see the point at 2", r"\text{point 2}")
    assert not is_correct("x and y are 1 and 2", "(1,2)")


@pytest.mark.parametrize(
    ("text", "gold", "correct", "answer", "extracted_by"),
    [
        (r"It is \boxed{\frac12}.", "0.5", True, r"\frac12", "boxed"),
        ("The answer is that she has 5 apples left.", "5", True, "5", "last number"),
        ("The answer is that she has 5 apples left.", "6", False, "5", "last number"),
        ("She has 5 apples", r"\#### 5", True, "5", "last number"),
        ("The answer is 3:45 p.m. on Tuesday.", "3:45 p.m. on Tuesday", True, "3:45 p.m. on Tuesday", "phrase"),
        ("The answer is not 5. It is 6.", "6", True, "6", "last number"),
        ("x + 1\n", "1+x", True, "x + 1", "whole text"),
        ("x + 1", "1", False, "x + 1", "whole text"),
        ("No solution exists", r"\text{no solution exists}", True, "No solution exists", "whole text"),
        ("I see the point at 2", r"\text{point 2}", False, None, None),
        ("1" * 3000 + "x", "x", False, None, None),
        ("", "5", False, None, None),
    ],
)
def test_the_verdict_is_about_the_answer_that_it_names(text, gold, correct, answer, extracted_by):
    assert judge(text, gold) == Verdict(correct, answer, extracted_by)
    if answer is not None:
        assert is_correct(answer, gold) == correct
