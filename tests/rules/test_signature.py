"""The rule language reads what is written in it, and says what it cannot read."""

import pytest

from onnx_net2net.rules.signature import Signature, Term, parse


def term(*names: str, star: bool = False, broadcast: bool = False) -> Term:
    return Term(names, star, broadcast)


N, C, G, X = term("n"), term("c"), term("g"), term("x", star=True)

TABLE = {
    "n c -> n c": (((N, C),), ((N, C),)),
    "n c *x, c -> n c *x": (((N, C, X), (C,)), ((N, C, X),)),
    "n (g i) *x -> n (g i)": (((N, term("g", "i"), X),), ((N, term("g", "i")),)),
    "(a b c) -> a": (((term("a", "b", "c"),),), ((term("a"),),)),
    "n~ c~, c -> n c": (((term("n", broadcast=True), term("c", broadcast=True)), (C,)), ((N, C),)),
    "*x -> *x, *x": (((X,),), ((X,), (X,))),
    "c, -> g": (((C,), ()), ((G,),)),
    "c ->": (((C,),), ((),)),
    "  n   c->n": (((N, C),), ((N,),)),
    "(g)->g": (((G,),), ((G,),)),
    "long_name x2 -> x2": (((term("long_name"), term("x2")),), ((term("x2"),),)),
}


@pytest.mark.parametrize("text", TABLE)
def test_a_signature_is_parsed_into_terms(text: str) -> None:
    assert parse(text) == Signature(*TABLE[text])


@pytest.mark.parametrize(
    ("text", "contracted"),
    [
        ("m k, k n -> m n", {"k": [0, 1]}),
        ("n (g i) *x, (g o) i *k, (g o) -> n (g o) *y", {"i": [0, 1]}),
        ("n c, c -> n c", {}),
        ("n c -> n", {}),  # reduced, not contracted
        ("a b, b, b c -> a c", {"b": [0, 1, 2]}),
        ("a a, b -> b", {}),  # twice in one input is a diagonal
        ("*b k, n k -> *b n", {"k": [0, 1]}),
    ],
)
def test_a_letter_in_two_inputs_and_no_output_is_contracted(text: str, contracted: dict[str, list[int]]) -> None:
    assert parse(text).contracted == contracted


NONSENSE = """
n c
n -> c -> n
(n c -> n
n c) -> n
*x *y -> *x
n 3c -> n
n - -> n
((a b) c) -> a
* -> n
~ -> n
"""


@pytest.mark.parametrize("text", NONSENSE.split("\n")[:-1])
def test_what_is_not_a_signature_is_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="not a signature") as caught:
        parse(text)
    assert repr(text) in str(caught.value)


def test_equal_texts_share_one_signature() -> None:
    assert parse("n c -> c n") is parse("n c -> c n")
