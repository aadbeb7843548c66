"""The command `chain`."""

import json
import os

import pytest
from chains import write
from commands import assert_refused


def test_the_command_says_what_became_of_the_stages(cli, tmp_path):
    path = write(tmp_path)
    assert "start is done before" in cli("chain", path, "--dry-run").out
    told = cli("chain", path)
    assert told.code == 0, told.err
    assert all(name in told.out for name in ("start", "m", "l", "val_loss", "at step 0"))
    said = json.loads(cli("chain", path, "--json").out)
    assert [stage["name"] for stage in said["stages"]] == ["start", "m", "l"]
    assert said["stages"][1]["expected"] == pytest.approx(said["stages"][1]["training"]["curve"][0][1])
    assert os.path.exists(said["stages"][2]["model"])
    assert_refused(cli("chain", path, "--from", "x"), 2, "no stage 'x'; there are start, m, l")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": [{"name": "m"}]}, "stage 1 needs either widen or deepen, or a target"),
        ({"stages": [{"name": "m", "widen": {"factr": 2}}]}, "widen has no option factr"),
        ({"stages": [{"name": "m/..", "widen": {"factor": 2}}]}, "a name is of letters"),
        ({"stages": [{"name": "start", "widen": {"factor": 2}}]}, "two stages are called 'start'"),
        ({"stages": [{"name": "m", "target": "gone.onnx"}]}, "there is no file gone.onnx"),
        ({"stop": {"metric": "loss"}}, "say when to stop"),
        ({"stop": {"metric": "loss", "steps": True}}, "steps cannot be True"),
        ({"stop": {"metric": "loss", "mode": "low", "steps": 1}}, "mode is min or max"),
        ({"train": "train {out}"}, r"needs \{out\}, and \{init\}"),
        ({"colour": "red"}, "has no 'colour'"),
    ],
)
def test_a_chain_that_makes_no_sense_is_one_line(cli, tmp_path, changes, words):
    assert_refused(cli("chain", write(tmp_path, **changes)), 2, words)


def test_a_file_that_is_no_chain_is_one_line(cli, tmp_path):
    path = tmp_path / "chain.yaml"
    for content, words in (("- 1", "is no chain"), ("a: [", "cannot read"), ("work: runs", "needs 'start'")):
        path.write_text(content)
        assert_refused(cli("chain", path), 2, words)
