"""Lets `python -m onnx_net2net` be the command line."""

import sys

from onnx_net2net.cli.main import main

sys.exit(main())
