"""The report: one self-contained HTML page made from `results.json` and from examples."""

from veclip_core.evaluation.report.inputs import (
    CaptionExample,
    Captions,
    Chart,
    Contamination,
    DataCard,
    HowTo,
    LossCurve,
    Source,
    StageRows,
    StandIn,
)
from veclip_core.evaluation.report.models_page import write_models_page
from veclip_core.evaluation.report.page import write_report
from veclip_core.evaluation.report.retrieved import RetrievalExamples, retrieval_examples

__all__ = [
    "CaptionExample",
    "Captions",
    "Chart",
    "Contamination",
    "DataCard",
    "HowTo",
    "LossCurve",
    "RetrievalExamples",
    "Source",
    "StageRows",
    "StandIn",
    "retrieval_examples",
    "write_models_page",
    "write_report",
]
