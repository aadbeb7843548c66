"""Where a student leaves its teacher is found along the layers that correspond."""

from test_transfer import Net, fill


def chain(seed, *activations, names="abc"):
    net = Net(seed, (3, 4))
    for name, activation in zip(names, activations, strict=True):
        net.linear(name, 6).node(activation)
    return net.linear("head", 2).build("y")


def test_the_first_layer_that_differs_is_named_with_what_is_in_front_of_it():
    teacher, target = chain(0, "Relu", "Relu", "Tanh"), chain(1, "Relu", "Softsign", "Tanh", names="xyz")
    _, _, obstacles = fill(teacher, target)
    expected = (
        "z: behind y, where both agree, it gets something else than in the teacher: the teacher has Relu and the target"
    )
    assert obstacles[0].startswith(f"{expected} has Softsign")


def test_a_difference_behind_the_last_layer():
    _, _, obstacles = fill(Net(0, (3, 4)).linear("a", 5).node("Relu").build("y"),
                           Net(1, (3, 4)).linear("a", 5).node("Tanh").build("y"))  # fmt: skip
    assert obstacles[0].startswith("the outputs: behind a, up to which all matched layers agree,")
