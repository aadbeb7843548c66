"""ai.onnx.ml: what a pipeline of scikit-learn does to features before a network reads them."""

from collections.abc import Sequence

from onnx import TensorProto

from onnx_net2net.rules import rule
from onnx_net2net.rules.normalization import typed_as_input
from onnx_net2net.rules.op import Op
from onnx_net2net.rules.typing import Typed, type_function

DOMAIN = "ai.onnx.ml"


@rule("Binarizer", "Imputer", "Normalizer", "Scaler", domain=DOMAIN)
def of_features(op: Op) -> None:
    """Prepare features, each with numbers of its own in the attributes."""
    op.freeze_all("prepares features one by one")


type_function("Binarizer", "Imputer", domain=DOMAIN)(typed_as_input)


@type_function("Normalizer", "Scaler", domain=DOMAIN)
def typed_as_floats(types: Sequence[Typed | None], *_: object) -> list[Typed]:
    """Type the result, which onnx's inference does not."""
    return [(TensorProto.FLOAT, known[1]) for known in types[:1] if known]
