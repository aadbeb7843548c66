"""A population of architectures: the weak take over what the strong have learnt, at their own size."""

import itertools

import pytest
from searches import STOP, TRAIN, killed, population, rounds_table as table

from onnx_net2net import load
from onnx_net2net.errors import BadInputError
from onnx_net2net.search.population import best_of


def test_the_weakest_takes_over_from_the_strongest_at_its_own_size(tmp_path):
    rounds = population(tmp_path).run()
    assert [len(members) for members in rounds] == [4, 4, 4]
    for before, after in itertools.pairwise(rounds):
        order = sorted(before, key=lambda m: m.value)
        (weak,) = [m for m in after if m.source is not None]
        assert (weak.number, weak.source) == (order[-1].number, order[0].number)
        assert weak.curve[0][1] == pytest.approx(order[0].value, rel=1e-5)  # what the strong one had come to
        old = [load(before[number].network.model).parameters for number in (weak.number, weak.source)]
        assert load(weak.network.model).parameters >= max(old)
        for member in after:
            if member.source is None:
                assert member.curve[0][1] == pytest.approx(before[member.number].value, rel=1e-5)
                assert member.candidate == before[member.number].candidate
    values = [best_of(members, STOP).value for members in rounds]
    assert values == sorted(values, reverse=True)
    assert table(population(tmp_path).run()) == table(rounds)
    with pytest.raises(BadInputError, match="made with another seed"):
        population(tmp_path, seed=1).run()


@pytest.mark.slow
def test_a_population_goes_on_where_it_was_ended(tmp_path):
    for name in ("calm", "rough"):
        (tmp_path / name).mkdir()
    calm = population(tmp_path / "calm").run()
    runner = population(tmp_path / "rough")
    heard = []

    def interrupt(*line):
        heard.append(line)
        if len(heard) in (3, 17, 29):
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            runner.run(interrupt)
    assert table(runner.run()) == table(calm)


@pytest.mark.slow
def test_a_population_that_is_killed_ten_times_comes_to_the_same(tmp_path):
    train = TRAIN + " --wait 0.2"
    calm = population(tmp_path / "calm", train=train).run()
    killed("population(folder, train=train).run()", tmp_path / "rough", train)
    assert table(population(tmp_path / "rough", train=train).run()) == table(calm)


@pytest.mark.slow
def test_a_member_whose_training_fails_takes_over_from_another(tmp_path):
    space = "widen: {fc1: [1x, 1.5x]}\ntrain: {how: [well, nan]}"
    rounds = population(tmp_path, space, TRAIN.replace("--rate {rate}", "--how {how}"), rounds=(2, 4), seed=3).run()
    failed = [member for member in rounds[0] if member.value is None]
    assert failed
    assert all("val_loss is nan" in member.note for member in failed)
    assert all(rounds[1][member.number].source is not None for member in failed)
