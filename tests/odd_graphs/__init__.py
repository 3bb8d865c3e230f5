"""Models with one oddity each, such as exporters and hands write them: what the engine must quantize or leave alone."""

import odd_graphs.files
import odd_graphs.layers
import odd_graphs.wiring  # noqa: F401 (the three modules enter their cases in the lists)
from odd_graphs.build import NOT_IN_ORT, ODD_GRAPHS, REFUSED, Builder, OddGraph
from odd_graphs.files import save_with_external_data

__all__ = ["NOT_IN_ORT", "ODD_GRAPHS", "REFUSED", "Builder", "OddGraph", "save_with_external_data"]
