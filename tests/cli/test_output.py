"""Tables on terminals."""

from commands import MODELS

from onnx_net2net.cli import output


def test_all_rows_are_there_on_request(cli):
    folded = cli("inspect", MODELS / "digits_resnet.onnx").out
    every = cli("inspect", MODELS / "digits_resnet.onnx", "--all-rows").out
    assert "layer1.*.conv1 x2" in folded
    assert "layer1.1.conv1" in every
    assert len(every.splitlines()) > len(folded.splitlines())


def test_nothing_breaks_inside_a_name_on_a_narrow_terminal(monkeypatch, cli):
    monkeypatch.setattr(output, "_width", lambda: 80)
    lines = cli("inspect", MODELS / "digits_inception_bn.onnx").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("conv" in line for line in lines) > 5
