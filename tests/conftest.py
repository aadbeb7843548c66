"""What all tests have in common."""

from hypothesis import settings

from onnx_net2net import inference

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
settings.load_profile("suite")

inference.STRICT = True  # an error of a rule is no ill-formed node here; the tests of these say so
