"""`python -m amct_onnx`."""

from __future__ import annotations

import sys

from amct_onnx.cli import main

sys.exit(main())
