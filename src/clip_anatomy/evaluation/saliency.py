"""S-measure, E-measure, F-measure and mean absolute error of maps against masks, by `pysodmetrics` (extra `measure`)."""

import importlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from clip_anatomy.errors import BadInput, MissingExtra

__all__ = ["Saliency"]


@dataclass(frozen=True)
class Saliency:
    """The four measures of camouflaged and salient object detection, picture by picture.

    The library's own accumulators do the counting, as in the papers that are compared with (Fan et al. 2017 and 2018; its
    defaults: α = 0.5, β² = 0.3, 256 thresholds).

    Attributes:
        measures: the library's accumulators.

    Raises:
        MissingExtra: pysodmetrics is not installed.

    Example:
        >>> seen = Saliency.empty()
        >>> mask = np.zeros((8, 8), dtype=bool)
        >>> mask[2:5, 2:5] = True
        >>> seen.add(mask.astype(np.float32), mask)
        >>> round(seen.figures()["S-measure"], 3), seen.figures()["MAE"]
        (1.0, 0.0)
    """

    measures: dict[str, Any] = field(repr=False)

    @classmethod
    def empty(cls) -> "Saliency":
        """Nothing seen yet."""
        try:
            library = importlib.import_module("py_sod_metrics")
        except ImportError as error:
            raise MissingExtra("pysodmetrics", "measure") from error
        found: dict[str, Any] = {n: getattr(library, n)() for n in ("Smeasure", "Emeasure", "WeightedFmeasure", "MAE")}
        handler = library.FmeasureHandler(beta=0.3, with_adaptive=True, with_dynamic=True)
        return cls(found | {"Fmeasure": library.FmeasureV2(metric_handlers={"fm": handler})})

    def add(self, map_: Float[np.ndarray, "row col"], mask: Bool[np.ndarray, "_row _col"]) -> None:
        """Count one picture (in place: the library keeps the state).

        Args:
            map_: 0..1; the library stretches it to 0..1 once more and compares 256 levels, as for PNG predictions.
            mask: where the object is.

        Raises:
            BadInput: sizes differ.
        """
        if map_.shape != mask.shape:
            raise BadInput(f"map {map_.shape} and mask {mask.shape} differ in size. Type masks of one size")
        levels = np.clip(np.rint(map_ * 255), 0, 255).astype(np.uint8)
        truth = mask.astype(np.uint8) * 255
        for measure in self.measures.values():
            measure.step(levels, truth)

    def figures(self) -> dict[str, float]:
        """The measures so far, means over pictures."""
        got = {name: measure.get_results() for name, measure in self.measures.items()}
        e, f = got["Emeasure"]["em"], got["Fmeasure"]["fm"]
        return {
            "S-measure": float(got["Smeasure"]["sm"]),
            "E-measure (mean)": float(np.mean(e["curve"])),
            "E-measure (adaptive)": float(e["adp"]),
            "F-measure (mean)": float(np.mean(f["dynamic"])),
            "F-measure (adaptive)": float(f["adaptive"]),
            "F-measure (weighted)": float(got["WeightedFmeasure"]["wfm"]),
            "MAE": float(got["MAE"]["mae"]),
        }
